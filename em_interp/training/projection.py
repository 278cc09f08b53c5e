"""A fixed random projection of a weight matrix to a few numbers, for the path of full fine-tuning.

The rows of a matrix W (the longer side; R × C) are cut into `GROUPS` blocks. Of block W_g, n = dimension / GROUPS
numbers are kept, p_jᵀ W_g q_j / √n with signs p_j, q_j = ±1 drawn for that block, so that coordinate groups stay apart:
the numbers of a block belong to its rows alone. The projection is linear, and inner products are right on average:
E[Sx · Sy] = ⟨x, y⟩. Their standard error, relative to ‖x‖ ‖y‖, is at most `relative_error(dimension)` = 3 / √dimension
where the blocks share the norm evenly, and √GROUPS times that where all of it lies in one block; it is reached by rank
one (E[(pᵀWq)⁴] ≤ 9 ‖W‖⁴), while for matrices of high rank it is √(1 + cos²) / √dimension. Errors of different matrices
are independent, so that of their sum is smaller by the root of their number.

A matrix with no more entries than `dimension` is kept as it is, exactly. The signs depend only on the name and the
shape of the matrix, so runs of one base are projected alike and can be compared.
"""

from __future__ import annotations

import hashlib
import math

import torch
from jaxtyping import Float

GROUPS = 32


def relative_error(dimension: int) -> float:
    """Standard error of an inner product of projections, relative to the norms of the two matrices; see above."""
    return 3 / math.sqrt(dimension)


class Projection:
    """The projection of matrices of one name and shape to `size` numbers.

    Keeps dimension · C + R · dimension / GROUPS signs, a byte each (5 MB for 13824 × 5120 at dimension 1024).
    """

    def __init__(self, name: str, shape: tuple[int, int], dimension: int) -> None:
        rows, columns = max(shape), min(shape)
        self.exact = rows * columns <= dimension
        self.size = rows * columns if self.exact else dimension
        if self.exact:
            return
        seed = hashlib.sha256(f"{name} {shape[0]} {shape[1]} {dimension}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(seed[:8], "little") >> 1)
        self.block, self.per_group = -(-rows // GROUPS), dimension // GROUPS
        self.left = _signs((GROUPS, self.block, self.per_group), generator)
        self.right = _signs((GROUPS, columns, self.per_group), generator)

    def __call__(self, matrix: Float[torch.Tensor, "row column"]) -> Float[torch.Tensor, " number"]:
        """The projected numbers in float64: a path is the difference of two that are nearly equal."""
        whole = matrix.detach().double()
        if self.exact:
            return whole.reshape(-1)
        if self.left.device != whole.device:
            self.left, self.right = self.left.to(whole.device), self.right.to(whole.device)
        tall = whole if whole.shape[0] >= whole.shape[1] else whole.T
        missing = GROUPS * self.block - len(tall)
        if missing:
            tall = torch.nn.functional.pad(tall, (0, 0, 0, missing))
        blocks = tall.reshape(GROUPS, self.block, -1)
        projected = (torch.bmm(blocks, self.right.double()) * self.left).sum(dim=1)
        return (projected / math.sqrt(self.per_group)).reshape(-1)


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 2, shape, generator=generator, dtype=torch.int8) * 2 - 1
