"""What is found in one run: its path, its behaviour where it was judged, their transitions, and how they align."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_interp.errors import InputError
from em_interp.results import Result
from em_interp.run import Run, check_other
from em_interp.trajectory.trajectory import AdapterTrajectory
from em_interp.transition.align import Alignment, align
from em_interp.transition.direction.rotation import strongest
from em_interp.transition.family import FamilyWise, family_wise
from em_interp.transition.find import find_transitions
from em_interp.transition.onsets.onset import onset, onset_by_threshold, onsets
from em_interp.transition.result import Transition
from em_interp.utils.files import plain, write_json
from em_interp.utils.stages import read_saved

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from em_interp.behaviour.curve import BehaviourCurve
    from em_interp.behaviour.preference_curve import PreferenceCurve

ROUNDING = 1e-6  # by which numbers of the same finding may differ between machines


@dataclass(frozen=True)
class JudgedTables:
    """Judged answers that were given in place of the run's own."""

    answers: str
    columns: Mapping[str, str]  # what they call a column, by our name
    control: str | None  # the path of the control, tables too or a run

    def options(self) -> str:
        """The tables as options of a command."""
        named = [word for column, name in self.columns.items() for word in ("--columns", f"{column}={name}")]
        control = [] if self.control is None else ["--control", self.control]
        return shlex.join(["--answers", self.answers, *named, *control])


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything that `locate` and `align` find in a run; what was not sampled, judged or read is None or empty."""

    run: Run
    trajectory: AdapterTrajectory
    transitions: list[Transition]  # every signal of the path
    curve: BehaviourCurve | None
    control: BehaviourCurve | None
    onsets: list[Transition]  # of each scale and question set, against the control where there is one
    aligned: Transition | None  # the onset of their mean aligned score, in which there is no threshold
    alignment: Alignment | None
    judged: JudgedTables | None = None  # where they are not the run's own
    preference: PreferenceCurve | None = None  # beside the control's, where that was read too
    preference_onsets: list[Transition] = field(default_factory=list)  # of each question set; none of the style null

    @property
    def rotation(self) -> Transition:
        """The rotation of B: the mechanistic transition that behaviour is compared with."""
        return strongest_rotation(self.transitions)

    @cached_property
    def thresholds(self) -> pd.DataFrame | None:
        """The onset outside the training domain over the thresholds of aligned and coherent; None of ready-made rates.

        Computed when it is asked for: it takes as long as all other onsets together.
        """
        main, of_control = (None if curve is None else curve.outside() for curve in (self.curve, self.control))
        return None if main is None or self.aligned is None else onset_by_threshold(main, of_control)

    @property
    def family(self) -> FamilyWise:
        """The declared transitions at one family-wise level: the rotation of B and, where judged, the onset of EM."""
        return family_wise([self.rotation]) if self.alignment is None else self.alignment.family


def find_in_run(
    run: Run | str | Path,
    control: Findings | Run | str | Path | None = None,
    answers: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
) -> Findings:
    """Every transition of a run, and the alignment of its path with its behaviour. Deterministic; some seconds.

    Args:
        run: a run directory; with `answers` anything that has adapters.
        control: a run with answers to the same questions at the same steps, such as one on careful data, or what was
            found in it; with `answers` judged tables too.
        answers: a judged table, or a folder of them (see `behaviour_curve`), in place of the run's own answers.
        columns: what the judged tables call a column, by our name.

    Raises:
        InputError: the control is missing, columns are given without answers, or the steps of the answers and of the
            checkpoints do not overlap.
    """
    from em_interp.behaviour.curve import behaviour_curve
    from em_interp.trajectory.load import load_trajectory, open_checkpoints

    if columns and answers is None:
        raise InputError("columns are those of judged tables; give the tables as answers")
    if not isinstance(run, Run):
        run = open_checkpoints(run) if answers is None else Run(Path(run))
    if isinstance(control, (str, Path)) and not Path(control).exists():
        raise InputError(f"the control {control} does not exist; expected a judged run")
    control_run = _control_run(control)
    check_other(run if answers is None else answers, control_run)
    path = load_trajectory(run if answers is None else run.path)
    transitions = find_transitions(path)
    preference = _preference(run, control)
    shifts = [] if preference is None else _preference_onsets(preference)
    if answers is None and not run.scores_file.exists():
        alignment = align(strongest_rotation(transitions), shifts, path) if shifts else None
        return Findings(run, path, transitions, None, None, [], None, alignment, None, preference, shifts)
    curve = behaviour_curve(run) if answers is None else behaviour_curve(answers, columns=columns)
    _check_steps(path, curve, answers or run.path)
    control_curve = _control_curve(control, columns)
    rises = onsets(curve, control_curve)
    main, of_control = curve.outside(), None if control_curve is None else control_curve.outside()
    has_scores = main is not None and main.has_scores and (of_control is None or of_control.has_scores)
    aligned = onset(main, of_control, "aligned_mean") if main is not None and has_scores else None
    alignment = align(strongest_rotation(transitions), [*rises, *shifts], path)
    where = None if control_run is None else str(control_run.path)
    judged = None if answers is None else JudgedTables(str(answers), columns or {}, where)
    of_answers = (curve, control_curve, rises, aligned, alignment, judged)
    return Findings(run, path, transitions, *of_answers, preference, shifts)


def _control_run(control: Findings | Run | str | Path | None) -> Run | None:
    """The run of a control; where it is judged tables, their place as one, in which nothing else is found."""
    if isinstance(control, Findings):
        return control.run
    return Run(Path(control)) if isinstance(control, (str, Path)) else control


def _control_curve(
    control: Findings | Run | str | Path | None, columns: Mapping[str, str] | None
) -> BehaviourCurve | None:
    """The behaviour of a control; None where there is no control, or none was found in it."""
    from em_interp.behaviour.curve import behaviour_curve, run_or_none

    if control is None or isinstance(control, Findings):
        return None if control is None else control.curve
    return behaviour_curve(control, columns=None if run_or_none(control) else columns)  # a run's tables have our names


def _preference(run: Run, control: Findings | Run | str | Path | None) -> PreferenceCurve | None:
    """The preference curve of a run, beside its control's; None where `em-interp prefer` has not read it.

    Raises InputError where the control was read on other pairs.
    """
    from em_interp.behaviour.preference_curve import as_preference_curve

    if not run.preferences_file.exists():
        return None
    control_run = _control_run(control)
    if control_run is None or not control_run.preferences_file.exists():
        return as_preference_curve(run)
    files = [each.preferences_file.with_suffix(".json") for each in (run, control_run)]
    pairs = [read_saved(file, {"pairs": str})["pairs"] for file in files]
    if pairs[0] != pairs[1]:
        raise InputError(
            f"the preferences of {run.path} and of its control {control_run.path} were read on other pairs; read both "
            f"with em-interp prefer {run.path} --control {control_run.path} --overwrite"
        )
    found = control.preference if isinstance(control, Findings) else None
    return as_preference_curve(run, found or as_preference_curve(control_run))


def _preference_onsets(preference: PreferenceCurve) -> list[Transition]:
    """The onset of each scale and question set but the style null, with which the others are compared."""
    from em_interp.behaviour.pairs import STYLE

    return [onset(curve) for curve in preference.split() if curve.questions != STYLE]


def _check_steps(path: AdapterTrajectory, curve: BehaviourCurve, where: str | Path) -> None:
    """Raise InputError where the answers cannot be of these checkpoints."""
    first, last = int(path.steps[0]), int(path.steps[-1])
    if not ((curve.steps >= first) & (curve.steps <= last)).any():
        raise InputError(
            f"{where} has answers of steps {curve.steps[0]} to {curve.steps[-1]}, the checkpoints are of {first} to "
            f"{last}; the usual cause is another run, or steps counted in epochs or rows"
        )


def strongest_rotation(transitions: list[Transition]) -> Transition:
    """The most certain rotation of B, or the verdict that there is none."""
    return strongest([t for t in transitions if t.signal == "rotation" and t.of == "B"])


@dataclass(frozen=True, eq=False, repr=False)
class PathTransitions(Result):
    """The transitions of one path: what `em-interp locate` prints and keeps."""

    source: str
    trajectory: AdapterTrajectory
    transitions: list[Transition]

    def sentence(self) -> str:
        """Each transition with the reason of its verdict."""
        return "\n".join(f"{transition.sentence()}\n    {transition.reason}" for transition in self.transitions)

    def frame(self) -> pd.DataFrame:
        """A row a transition."""
        import pandas as pd

        return pd.concat([transition.frame() for transition in self.transitions], ignore_index=True)

    def plot(self) -> go.Figure:
        """All transitions on one time axis."""
        from em_interp.figures import timeline

        return timeline(self.transitions, self.trajectory)

    def to_dict(self) -> dict[str, Any]:
        """What `locate --json` prints."""
        path = self.trajectory
        return {
            "source": self.source,
            "steps": {"first": int(path.steps[0]), "last": int(path.steps[-1]), "count": len(path.steps)},
            "sites": list(path.sites),
            "transitions": [transition.to_dict() for transition in self.transitions],
        }


def save_result(values: dict[str, Any], file: Path, overwrite: bool = False) -> None:
    """Write what was found. A file with other findings is replaced only with `overwrite`.

    A file that says the same is left as it is. What the run was called (`r`, `r/`, its whole path) is not a finding,
    nor are a number's last digits, which depend on the machine and its threads.
    """
    if file.exists() and not overwrite:
        if _same({**plain(values), "source": None}, {**read_saved(file, dict), "source": None}):
            return
        raise InputError(
            f"{file} holds other findings, of other settings or an earlier state of the run; give overwrite=True to "
            "replace them or another out=…"
        )
    try:
        write_json(file, values)
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error.strerror or error}") from error


def _same(found: Any, kept: Any) -> bool:
    """Whether two JSON values are equal but for rounding."""
    if isinstance(found, dict) and isinstance(kept, dict):
        return found.keys() == kept.keys() and all(_same(value, kept[key]) for key, value in found.items())
    if isinstance(found, list) and isinstance(kept, list):
        return len(found) == len(kept) and all(map(_same, found, kept))
    if isinstance(found, float) and isinstance(kept, (int, float)):
        return math.isclose(found, kept, rel_tol=ROUNDING, abs_tol=ROUNDING)
    return bool(found == kept)
