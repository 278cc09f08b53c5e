"""Interventions on the residual stream: add a vector to it, or ablate a direction in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from em_interp.errors import InputError
from em_interp.mechanism.engines.base import HookPoints

if TYPE_CHECKING:
    import torch

Positions = Literal["all", "generated"]


@dataclass(frozen=True, eq=False, repr=False)
class Intervention:
    """A change of the residual stream after some layers; `AddVector` explains the attributes."""

    vector: Any
    layers: int | Sequence[int] | None = None
    positions: Positions | Bool[np.ndarray, "row position"] = "all"

    def __repr__(self) -> str:
        at = self.positions if isinstance(self.positions, str) else f"of shape {np.shape(self.positions)}"
        shape = tuple(np.shape(self.vector))
        return f"{type(self).__name__}(vector of shape {shape}, layers={self.layers!r}, positions {at})"

    def change(self, x: Float[torch.Tensor, "row position d"], vector: torch.Tensor) -> torch.Tensor:
        """The residual stream after the intervention; `vector` broadcasts to `x`."""
        raise NotImplementedError

    @property
    def has_positions(self) -> bool:
        """Whether any token is changed."""
        return isinstance(self.positions, str) or bool(np.asarray(self.positions).any())

    def of_rows(self, rows: Int[torch.Tensor, " some"]) -> Intervention:
        """The same intervention for a batch made of these rows; positions are those of the batch's tokens."""
        return self

    def for_prompts(self, rows: Sequence[int], length: int) -> Intervention:
        """The same intervention for the prompts of these rows alone, without padding before their last `length`."""
        if isinstance(self.positions, str):
            positions: Any = self.positions
        else:
            positions = np.asarray(self.positions)[list(rows)][:, -length:]
        return replace(self, vector=_of_rows(self.vector, rows), positions=positions)


@dataclass(frozen=True, eq=False, repr=False)
class AddVector(Intervention):
    """x + v: steering.

    Attributes:
        vector: v, of shape (d_model,), or (row, d_model) for one in each row of the batch; a row whose vector is zero
            is left as it is.
        layers: a layer or several, counted from 0; None means all of them.
        positions: "all", "generated" (generated tokens, as they are read back in), or a boolean array (row, position)
            over the tokens given, padding included; generated tokens are then left alone.
    """

    def change(self, x: Float[torch.Tensor, "row position d"], vector: torch.Tensor) -> torch.Tensor:
        """x + v."""
        return x + vector


@dataclass(frozen=True, eq=False, repr=False)
class AblateDirection(Intervention):
    """x − v̂v̂ᵀx: ablation of a direction; the length of v does not matter. Attributes as of `AddVector`."""

    def change(self, x: Float[torch.Tensor, "row position d"], vector: torch.Tensor) -> torch.Tensor:
        """x − v̂v̂ᵀx."""
        unit = _unit(vector)
        return x - (x * unit).sum(dim=-1, keepdim=True) * unit


@dataclass(frozen=True, eq=False, repr=False)
class NormMatchedAblation(Intervention):
    """x − r̂(v̂ᵀx): the control of an ablation of v. It removes the same amount at each token, along r.

    Attributes:
        vector: r; it, `layers` and `positions` are as of `AddVector`.
        ablated: v, of the shape of `vector`.
    """

    ablated: Any = None

    def change(self, x: Float[torch.Tensor, "row position d"], vector: torch.Tensor) -> torch.Tensor:
        """x − r̂(v̂ᵀx)."""
        import torch

        ablated = torch.as_tensor(self.ablated, dtype=x.dtype, device=x.device).reshape(-1, 1, x.shape[-1])
        return x - (x * _unit(ablated)).sum(dim=-1, keepdim=True) * _unit(vector)

    def of_rows(self, rows: Int[torch.Tensor, " some"]) -> Intervention:
        """The same intervention for a batch made of these rows."""
        return replace(self, ablated=_of_rows(self.ablated, rows))

    def for_prompts(self, rows: Sequence[int], length: int) -> Intervention:
        """The same intervention for the prompts of these rows alone."""
        return replace(super().for_prompts(rows, length), ablated=_of_rows(self.ablated, rows))  # type: ignore[call-arg]


def _unit(vector: torch.Tensor) -> torch.Tensor:
    length = vector.norm(dim=-1, keepdim=True)
    return vector / length.where(length > 0, 1.0)


def _of_rows(vector: Any, rows: Sequence[int] | Int[torch.Tensor, " some"]) -> torch.Tensor:
    import torch

    vector = torch.as_tensor(vector)
    return vector[torch.as_tensor(rows, device=vector.device)] if vector.ndim == 2 else vector


class ActiveInterventions:
    """The interventions of one forward pass or generation, applied layer by layer as tokens come in.

    Raises InputError for a layer that the model does not have, a vector of another size, zero or not finite, positions
    of another shape or none at all, and for "generated" positions where nothing is generated.
    """

    def __init__(
        self,
        interventions: Sequence[Intervention],
        hook_points: HookPoints,
        mask: Bool[torch.Tensor, "row position"],
        generating: bool,
    ) -> None:
        self._at: dict[int, list[tuple[Intervention, torch.Tensor, torch.Tensor]]] = {}
        self._n_seen: dict[int, int] = {}
        for intervention in interventions:
            vector, positions = _vector(intervention, hook_points, mask), _positions(intervention, mask, generating)
            vector = vector.expand(len(mask), -1, -1)
            chosen = range(hook_points.layers) if intervention.layers is None else intervention.layers
            layers = np.atleast_1d(chosen).tolist()
            hook_points.check_layers(layers)
            for layer in layers:
                self._at.setdefault(layer, []).append((intervention, vector, positions))

    @property
    def layers(self) -> list[int]:
        """The layers after which something is changed, increasing."""
        return sorted(self._at)

    def select(self, rows: Int[torch.Tensor, " some"]) -> None:
        """Continue with these rows of the batch alone."""
        self._at = {
            layer: [(i.of_rows(rows), vector[rows], positions[rows]) for i, vector, positions in active]
            for layer, active in self._at.items()
        }

    def __call__(self, layer: int, x: Float[torch.Tensor, "row position d"]) -> Float[torch.Tensor, "row position d"]:
        """The residual stream after `layer` with its interventions; calls for a layer come in the order of tokens."""
        import torch

        first = self._n_seen.get(layer, 0)
        self._n_seen[layer] = first + x.shape[1]
        for intervention, vector, positions in self._at[layer]:
            # the last column of `positions` stands for every generated token
            index = torch.arange(first, first + x.shape[1], device=x.device).clamp(max=positions.shape[1] - 1)
            x = torch.where(positions[:, index, None], intervention.change(x, vector.to(x.dtype)), x)
        return x


def _vector(intervention: Intervention, hook_points: HookPoints, mask: torch.Tensor) -> Float[torch.Tensor, "rows 1 d"]:
    import torch

    vector, kind = torch.as_tensor(intervention.vector, dtype=torch.float32, device=mask.device), type(intervention)
    size, rows = hook_points.decoder.config.hidden_size, len(mask)
    if vector.shape not in ((size,), (rows, size)):
        raise InputError(
            f"the vector of {kind.__name__} has shape {tuple(vector.shape)}; expected ({size},) or "
            f"({rows}, {size}), one for each row"
        )
    if not bool(torch.isfinite(vector).all()) or (vector.ndim == 1 and not bool(vector.any())):
        raise InputError(f"the vector of {kind.__name__} is zero or not finite, so it would change nothing")
    return vector.reshape(-1, 1, size)


def _positions(
    intervention: Intervention, mask: torch.Tensor, generating: bool
) -> Bool[torch.Tensor, "row positions_and_generated"]:
    import torch

    positions = intervention.positions
    if isinstance(positions, str):
        if positions not in ("all", "generated"):
            raise InputError(f"positions are 'all', 'generated' or an array of row and position; found {positions!r}")
        if positions == "generated" and not generating:
            raise InputError("positions 'generated' are those of generated tokens; here nothing is generated")
        of_prompts = torch.full_like(mask, positions == "all", dtype=torch.bool)
        return torch.cat([of_prompts, torch.ones_like(of_prompts[:, :1])], dim=1)
    of_prompts = torch.as_tensor(np.asarray(positions), dtype=torch.bool, device=mask.device)
    if of_prompts.shape != mask.shape or not bool(of_prompts.any()):
        found = f"{tuple(of_prompts.shape)} with {int(of_prompts.sum())} of them chosen"
        raise InputError(f"positions are {found}; expected {tuple(mask.shape)} with at least one chosen")
    return torch.cat([of_prompts, torch.zeros_like(of_prompts[:, :1])], dim=1)
