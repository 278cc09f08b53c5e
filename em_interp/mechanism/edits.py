"""Interventions on the residual stream: add a vector to it, or project a direction out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from em_interp.errors import InputError

if TYPE_CHECKING:
    import torch

    from em_interp.mechanism.layout import Layout

Where = Literal["all", "new"]


@dataclass(frozen=True, eq=False)
class Edit:
    """A change of `resid_post` at some layers and positions; use `Add` or `ProjectOut`.

    `vector` is of shape (d_model,), or (row, d_model) for a vector of its own in each row of the batch; a row whose
    vector is zero is left as it is. `layers` None means all of them. `positions` are "all", "new" (tokens that the
    model generates, as they are read back in), or a boolean array (row, position) over the tokens given, padding
    included; new tokens are then left alone.
    """

    vector: Any
    layers: int | Sequence[int] | None = None
    positions: Where | Bool[np.ndarray, "row position"] = "all"

    def change(self, x: Float[torch.Tensor, "row position d"], vector: torch.Tensor) -> torch.Tensor:
        """The edited stream; `vector` broadcasts to it."""
        raise NotImplementedError

    def repeated(self, rows: Sequence[int]) -> Edit:
        """The same edit for a batch made of these rows."""
        import torch

        vector = torch.as_tensor(self.vector)
        positions = self.positions if isinstance(self.positions, str) else np.asarray(self.positions)[list(rows)]
        return replace(self, vector=vector[list(rows)] if vector.ndim == 2 else vector, positions=positions)


@dataclass(frozen=True, eq=False)
class Add(Edit):
    """x + v: steering."""

    def change(self, x: Float[torch.Tensor, "row position d"], vector: torch.Tensor) -> torch.Tensor:
        """x + v."""
        return x + vector


@dataclass(frozen=True, eq=False)
class ProjectOut(Edit):
    """x - v̂v̂ᵀx: ablation of a direction, whatever the length of v."""

    def change(self, x: Float[torch.Tensor, "row position d"], vector: torch.Tensor) -> torch.Tensor:
        """x - v̂v̂ᵀx."""
        length = vector.norm(dim=-1, keepdim=True)
        unit = vector / length.where(length > 0, 1.0)
        return x - (x * unit).sum(dim=-1, keepdim=True) * unit


class Editor:
    """Edits at work during one pass or generation: which layers change, and how, as tokens come in.

    Raises InputError for a layer that is not there, a vector of another size, zero or not finite, positions of
    another shape or none at all, and for "new" positions where nothing is generated.
    """

    def __init__(
        self, edits: Sequence[Edit], layout: Layout, mask: Bool[torch.Tensor, "row position"], new: bool
    ) -> None:
        self._at: dict[int, list[tuple[Edit, torch.Tensor, torch.Tensor]]] = {}
        self._seen: dict[int, int] = {}
        for edit in edits:
            vector, positions = _vector(edit, layout, mask), _positions(edit, mask, new)
            layers = range(layout.layers) if edit.layers is None else np.atleast_1d(edit.layers).tolist()
            layout.check_layers(layers)
            for layer in layers:
                self._at.setdefault(layer, []).append((edit, vector, positions))

    @property
    def layers(self) -> list[int]:
        """Layers that are edited, increasing."""
        return sorted(self._at)

    def __call__(self, layer: int, x: Float[torch.Tensor, "row position d"]) -> Float[torch.Tensor, "row position d"]:
        """The stream after `layer` with its edits; calls for one layer must come in the order of the tokens."""
        import torch

        first = self._seen.get(layer, 0)
        self._seen[layer] = first + x.shape[1]
        for edit, vector, positions in self._at[layer]:
            # the last column of `positions` stands for every new token
            index = torch.arange(first, first + x.shape[1], device=x.device).clamp(max=positions.shape[1] - 1)
            here = positions[:, index, None]
            x = torch.where(here, edit.change(x, vector.to(x.dtype)), x)
        return x


def _vector(edit: Edit, layout: Layout, mask: torch.Tensor) -> Float[torch.Tensor, "rows 1 d"]:
    import torch

    vector = torch.as_tensor(edit.vector, dtype=torch.float32, device=mask.device)
    size, rows = layout.decoder.config.hidden_size, len(mask)
    if vector.shape not in ((size,), (rows, size)):
        raise InputError(
            f"the vector of {type(edit).__name__} has shape {tuple(vector.shape)}; expected ({size},) or "
            f"({rows}, {size}), one for each row"
        )
    if not bool(torch.isfinite(vector).all()) or (vector.ndim == 1 and not bool(vector.any())):
        raise InputError(f"the vector of {type(edit).__name__} is zero or not finite, so it would change nothing")
    return vector.reshape(-1, 1, size)


def _positions(edit: Edit, mask: torch.Tensor, new: bool) -> Bool[torch.Tensor, "row positions_and_new"]:
    import torch

    if isinstance(edit.positions, str):
        if edit.positions not in ("all", "new"):
            raise InputError(f"positions are 'all', 'new' or an array of row and position; found {edit.positions!r}")
        if edit.positions == "new" and not new:
            raise InputError("positions 'new' are those of generated tokens; here nothing is generated")
        given = torch.full_like(mask, edit.positions == "all", dtype=torch.bool)
        return torch.cat([given, torch.ones_like(given[:, :1])], dim=1)
    given = torch.as_tensor(np.asarray(edit.positions), dtype=torch.bool, device=mask.device)
    if given.shape != mask.shape or not bool(given.any()):
        found = f"{tuple(given.shape)} with {int(given.sum())} of them chosen"
        raise InputError(f"positions are {found}; expected {tuple(mask.shape)} with at least one chosen")
    return torch.cat([given, torch.zeros_like(given[:, :1])], dim=1)
