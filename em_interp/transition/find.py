"""Find transitions: the one entry to the estimators of all signals, for an adapter's path or a behaviour curve."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from em_interp.errors import InputError, nearest
from em_interp.run import Run, check_other
from em_interp.trajectory import geometry
from em_interp.trajectory.composition import composition_path, no_composition
from em_interp.trajectory.load import TrajectorySource, as_trajectory
from em_interp.trajectory.trajectory import MATRICES, AdapterTrajectory, Matrix, as_matrix
from em_interp.transition.direction.beyond_control import beyond_control
from em_interp.transition.direction.rotation import ROTATION_ALPHA, locate_rotations, path_increments, strongest
from em_interp.transition.onsets.logistic import ONSET_ALPHA
from em_interp.transition.onsets.onset import AnyCurve, onset, onsets
from em_interp.transition.result import Transition
from em_interp.transition.signals.gradient_norm import gradient_norm_peak
from em_interp.transition.signals.lock_in import composition, lock_in
from em_interp.transition.signals.norm_onset import norm_onset
from em_interp.transition.signals.series import SERIES_ALPHA
from em_interp.utils.checks import check_level, check_type, described

Signal = Literal["rotation", "gradient_norm", "norm_onset", "lock_in", "composition", "onset"]
PATH_SIGNALS: tuple[Signal, ...] = ("rotation", "gradient_norm", "norm_onset", "lock_in", "composition")
TEST_LEVELS: dict[str, float] = {  # the largest p-value of a transition, by signal; the other signals are no tests
    "rotation": ROTATION_ALPHA,
    "gradient_norm": SERIES_ALPHA,
    "norm_onset": SERIES_ALPHA,
    "onset": ONSET_ALPHA,
}
MIN_COVERED = 0.8  # share of the run that a log must cover for a `none`; as many of its values must be there


def find_transition(
    source: TrajectorySource | AnyCurve,
    signal: Signal | None = None,
    of: Matrix | None = None,
    site: str | None = None,
    control: TrajectorySource | AnyCurve | None = None,
    level: float = 0.95,
) -> Transition:
    """Find one transition: the `rotation` of B for a path, the `onset` of EM for a behaviour curve.

    Args:
        source: A trajectory, a run or its path, or a behaviour curve of one scale and question set.
        signal: One of `rotation`, `gradient_norm`, `norm_onset`, `lock_in`, `composition`; of a curve `onset`.
        of: The matrix whose path is tested for rotations: "B" (the default), "A" or "delta" (ΔW).
        site: One adapted module instead of the pooled path of all.
        control: The control run's curve, against which a curve's rise is tested; or its path, against which a path's
            rotations are: a turn that the control has as well is `none`.
        level: Probability with which `interval` contains the step.

    Returns:
        The transition with the smallest p-value where the signal has several; `find_transitions` lists them all.

    Raises:
        InputError: For a signal, matrix or site that the source does not have.
    """
    _check(source, signal, level, control)
    if isinstance(source, AnyCurve):
        _check_no_adapters("a behaviour curve", of, site)
        return onset(source, control, level=level)  # type: ignore[arg-type]  # it checks it
    source = as_trajectory(source)
    signal = signal or ("gradient_norm" if source.kind == "log" else "rotation")
    of = "B" if of is None and signal == "rotation" else of
    return strongest(find_transitions(source, signal, of, site, control, level))


def find_transitions(
    source: TrajectorySource | AnyCurve,
    signal: Signal | None = None,
    of: Matrix | None = None,
    site: str | None = None,
    control: TrajectorySource | AnyCurve | None = None,
    level: float = 0.95,
) -> list[Transition]:
    """Every transition of every signal, or of the one named, each with its verdict.

    No correction is made for the number of signals: a claim should name its signal beforehand.

    Args:
        source: A trajectory, a run or its path, or a behaviour curve.
        signal: One signal, see `find_transition`; by default all that the source has.
        of: The matrix whose path is tested for rotations; by default B, A and ΔW, each by itself.
        site: One adapted module instead of the pooled path of all.
        control: The control run's curve, against which a curve's rise is tested; or its path, against which a path's
            rotations are: a turn that the control has as well is `none`.
        level: Probability with which each `interval` contains the step.

    Returns:
        Of a path: `rotation`, several where there are several; `gradient_norm` of the log; `norm_onset` and `lock_in`
        of ΔW; `composition` where several adapters write into the residual stream. With `site` only what one site has:
        no `gradient_norm`, which is logged for the whole run, and no `composition`. Of a behaviour curve the `onset` of
        each scale and question set.

    Raises:
        InputError: For a signal, matrix or site that the source does not have.
    """
    _check(source, signal, level, control)
    if isinstance(source, AnyCurve):
        _check_no_adapters("a behaviour curve", of, site)
        return onsets(source, control, level=level)  # type: ignore[arg-type]  # it checks it
    path, matrices = as_trajectory(source), MATRICES if of is None else (as_matrix(of),)
    of_control = None if control is None else _as_path(control, path, signal)
    missing = _missing_signals(path, site)
    if signal in missing:
        raise InputError(f"the path has no signal {signal!r}: {missing[signal]}")
    if path.kind == "log":
        _check_no_adapters(f"{path.source}, a log alone,", of, site)
    if of is not None and signal not in (None, "rotation"):
        raise InputError(f"of= names the matrix whose rotation is looked for; the signal is {signal!r}: leave it out")
    signals = [name for name in PATH_SIGNALS if name not in missing] if signal is None else [signal]
    return [replace(t, site=site) for name in signals for t in _on_path(path, name, matrices, site, level, of_control)]


def _check(source: TrajectorySource | AnyCurve, signal: str | None, level: float, control: object) -> None:
    """Raise InputError for no path or curve, a signal that it lacks, a wrong level, and a run as its own control."""
    check_other(source, control)
    expected = "a trajectory, a run or its path, or a behaviour curve"
    check_type("source", source, (AdapterTrajectory, Run, str, Path, *get_args(AnyCurve)), expected)
    check_level(level)
    curve = isinstance(source, AnyCurve)
    known, what = (("onset",), "a behaviour curve") if curve else (PATH_SIGNALS, "an adapter's path")
    if signal is not None and signal not in known:
        hint = nearest(signal, known) if isinstance(signal, str) else ""
        raise InputError(f"{what} has no signal {described(signal)}{hint} (it has: {', '.join(known)})")


def _check_no_adapters(what: str, of: str | None, site: str | None) -> None:
    """Raise InputError for what adapters' paths have, asked of a behaviour curve or a log alone."""
    if of is not None or site is not None:
        given = f"of={of!r}" if of is not None else f"site={site!r}"
        raise InputError(f"{what} has no matrices and no sites; found {given}, which is for adapters' paths")


def _as_path(control: TrajectorySource | AnyCurve, path: AdapterTrajectory, signal: str | None) -> AdapterTrajectory:
    """The control of a path. Raises InputError for a curve, a log alone, and a signal that has no use for one."""
    if isinstance(control, AnyCurve):
        raise InputError(f"the control of a path is another run or its path; found {described(control)}")
    if signal not in (None, "rotation"):
        raise InputError(f"a path's rotations are tested against a control, and {signal} is not: leave control out")
    control = as_trajectory(control)
    for each in (path, control):
        if each.kind == "log":
            raise InputError(f"{each.source} is a log alone, without adapters whose rotations could be compared")
    return control


def _missing_signals(path: AdapterTrajectory, site: str | None) -> dict[str, str]:
    """The signals that the path, or one site of it, does not have, each with the reason."""
    if path.kind == "log":
        why = f"{path.source} is a log alone, without adapters; it has gradient_norm"
        return {name: why for name in PATH_SIGNALS if name != "gradient_norm"}
    if site is None:
        reason = no_composition(path)
        return {"composition": reason} if reason else {}
    return {
        "gradient_norm": "it is logged for the whole run; one site was asked for",
        "composition": "it compares several adapters; one site was asked for",
    }


def _on_path(
    path: AdapterTrajectory,
    signal: str,
    matrices: tuple[Matrix, ...],
    site: str | None,
    level: float,
    control: AdapterTrajectory | None,
) -> list[Transition]:
    if signal == "rotation":
        if len(matrices) > 1:
            path.gram("delta", site)  # at rank 1 those of A and B come with it
        return [t for matrix in matrices for t in _rotations(path, matrix, site, level, control)]
    if signal == "gradient_norm":
        if "grad_norm" not in path.metrics:
            return [Transition("gradient_norm", "inconclusive", "The run has no log of the gradient norm.")]
        logged = path.metrics["grad_norm"].dropna()
        peak = gradient_norm_peak(logged.index.to_numpy(), logged.to_numpy(float), level)
        return [_of_logged(peak, logged.index.to_numpy(), path.steps)]
    if signal == "composition":
        return [composition(path.steps, composition_path(path, normalised=True))]
    gram = path.gram("delta", site)
    if signal == "lock_in":
        return [lock_in(path.steps, geometry.cosine_to_step(gram, path.steps, int(path.steps[-1])))]
    return [_norm_onset(path, geometry.norms(gram), level)]


def _rotations(
    path: AdapterTrajectory, of: Matrix, site: str | None, level: float, control: AdapterTrajectory | None
) -> list[Transition]:
    """The rotations of one matrix; with a control those that go beyond its own, or one answer that says why not."""
    lr = path.cumulative_lr if np.isfinite(path.cumulative_lr).all() else None
    found = locate_rotations(path.gram(of, site), path.steps, lr, level, path.rounding(of, site))
    found = [replace(transition, of=of, site=site) for transition in found]
    if control is None:
        return found
    tested = [against_control(t, path, control, level) if t.found else t for t in found]
    open_ones = [t for t in tested if t.verdict == "inconclusive"]
    return [t for t in tested if t.found] or open_ones[:1] or [strongest(tested)]


def against_control(
    turn: Transition, path: AdapterTrajectory, control: AdapterTrajectory, level: float = 0.95
) -> Transition:
    """A rotation that was found in a path, tested against the control's path (`beyond_control`)."""
    of, site = as_matrix(turn.of or "B"), turn.site
    own, other = (path_increments(each.gram(of, site), each.steps, each.rounding(of, site)) for each in (path, control))
    assert not isinstance(own, str)  # a turn was found in them
    return beyond_control(turn, own, other, level)


def _norm_onset(path: AdapterTrajectory, norms: Float[np.ndarray, " step"], level: float) -> Transition:
    """The onset of the norm's growth in the steps whose cumulative learning rate is logged."""
    covered = np.isfinite(path.cumulative_lr)
    if covered.sum() < 2:
        what = (
            "log of the learning rate from its beginning"
            if "learning_rate" in path.metrics
            else "log of the learning rate"
        )
        return Transition("norm_onset", "inconclusive", f"The run has no {what}.", of="delta")
    steps = path.steps[covered]
    return _of_logged(norm_onset(steps, norms[covered], path.cumulative_lr[covered], level), steps, path.steps)


def _of_logged(found: Transition, logged: Int[np.ndarray, " logged"], steps: Int[np.ndarray, " step"]) -> Transition:
    """What was found in a log, with the steps that it covers where it lacks some; then `none` needs most of the run."""
    first, last = int(logged[0]), int(logged[-1])
    interval = float(np.median(np.diff(logged, prepend=0)))
    if first - interval <= steps[0] and last + interval >= steps[-1]:
        return found
    reason = f"{found.reason} The log covers steps {first} to {last} only."
    enough = min(last, steps[-1]) - max(first, steps[0]) >= MIN_COVERED * (steps[-1] - steps[0])
    verdict = found.verdict if enough or found.verdict != "none" else "inconclusive"
    return replace(found, reason=reason, verdict=verdict)
