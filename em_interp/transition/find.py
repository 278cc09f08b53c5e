"""One way in to every locator: what changed, and when, on a path or on a behaviour curve."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from em_interp.errors import InputError, nearest
from em_interp.trajectory import geometry
from em_interp.trajectory.composition import composition_path, no_composition
from em_interp.trajectory.trajectory import AdapterTrajectory, Part
from em_interp.transition.gradient_norm import gradient_norm_peak
from em_interp.transition.lock_in import composition, lock_in
from em_interp.transition.norm_onset import norm_onset
from em_interp.transition.onset import Curve, onset, onsets
from em_interp.transition.result import Transition
from em_interp.transition.rotation import locate_rotations, strongest

Signal = Literal["rotation", "gradient_norm", "norm_onset", "lock_in", "composition", "onset"]
PATH_SIGNALS: tuple[Signal, ...] = ("rotation", "gradient_norm", "norm_onset", "lock_in", "composition")
PARTS: tuple[Part, ...] = ("B", "A", "delta")


def find_transition(
    source: AdapterTrajectory | Curve,
    signal: Signal | None = None,
    of: Part | None = None,
    site: str | None = None,
    control: Curve | None = None,
    level: float = 0.95,
) -> Transition:
    """One transition: of a path its `rotation` (in B, where `of` names no other part), of a curve its `onset`.

    Where a signal has several transitions the most certain is given; `find_transitions` lists them all. `site` asks
    for one adapted module instead of the pooled path. A curve may be held against the `control` run's.
    """
    if not isinstance(source, AdapterTrajectory):
        _check_signal(signal, ("onset",), "a behaviour curve")
        return onset(source, control, level=level)
    signal = signal or "rotation"
    of = of or ("B" if signal == "rotation" else None)
    return strongest(find_transitions(source, signal, of, site, control, level))


def find_transitions(
    source: AdapterTrajectory | Curve,
    signal: Signal | None = None,
    of: Part | None = None,
    site: str | None = None,
    control: Curve | None = None,
    level: float = 0.95,
) -> list[Transition]:
    """Every transition of every signal, or of the one named, each with its verdict.

    Of a path: `rotation` in B, in A and in ΔW (or in the part `of`), several where there are several; `gradient_norm`
    (of the log, where the run has one); `norm_onset` and `lock_in` of ΔW; `composition` where several adapters write
    into the residual stream. Of a behaviour curve: the `onset` of each
    scale and question set.
    """
    if not isinstance(source, AdapterTrajectory):
        _check_signal(signal, ("onset",), "a behaviour curve")
        return onsets(source, control, level=level)
    _check_signal(signal, PATH_SIGNALS, "an adapter's path")
    if of is not None and of not in PARTS:
        raise InputError(f"of must be one of {', '.join(PARTS)}; it is {of!r}")
    if control is not None:
        raise InputError("a control is for behaviour curves; an adapter's path was given")
    against = no_composition(source) if site is None else "it compares several adapters; one site was asked for"
    if signal == "composition" and against:
        raise InputError(f"the path has no signal 'composition': {against}")
    wanted = PATH_SIGNALS if signal is None else (signal,)
    if against:
        wanted = tuple(name for name in wanted if name != "composition")
    return [replace(t, site=site) for name in wanted for t in _of_path(source, name, of, site, level)]


def _check_signal(signal: str | None, known: tuple[str, ...], what: str) -> None:
    if signal is not None and signal not in known:
        hint = nearest(signal, known)
        raise InputError(f"{what} has no signal {signal!r}{hint} (it has: {', '.join(known)})")


def _of_path(path: AdapterTrajectory, signal: str, of: Part | None, site: str | None, level: float) -> list[Transition]:
    lr = path.cumulative_lr if np.isfinite(path.cumulative_lr).all() else None
    if signal == "rotation":
        parts = PARTS if of is None else (of,)
        return [
            replace(t, of=part)
            for part in parts
            for t in locate_rotations(path.gram(part, site), path.steps, lr, level=level)
        ]
    if signal == "gradient_norm":
        if "grad_norm" not in path.metrics:
            return [Transition("gradient_norm", "inconclusive", "The run has no log of the gradient norm.")]
        logged = path.metrics["grad_norm"].dropna()
        return [gradient_norm_peak(logged.index.to_numpy(), logged.to_numpy(float), level)]
    if signal == "composition":
        return [composition(path.steps, composition_path(path, normalised=True))]
    gram = path.gram("delta", site)
    if signal == "lock_in":
        return [lock_in(path.steps, geometry.cosine_to_step(gram, path.steps, int(path.steps[-1])))]
    if lr is None:
        return [Transition("norm_onset", "inconclusive", "The run has no log of the learning rate.", of="delta")]
    return [norm_onset(path.steps, geometry.norms(gram), lr, level)]
