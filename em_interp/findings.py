"""What is found in one run: its path, its behaviour where it was asked, their transitions, and how they align."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_interp.errors import InputError
from em_interp.files import read_json, to_json, write_json
from em_interp.run import Run, open_run
from em_interp.trajectory.trajectory import AdapterTrajectory
from em_interp.transition.align import Alignment, align
from em_interp.transition.find import find_transitions
from em_interp.transition.onset import onset, onset_by_threshold, onsets
from em_interp.transition.result import Transition
from em_interp.transition.rotation import strongest

if TYPE_CHECKING:
    import pandas as pd

    from em_interp.behaviour.curve import BehaviourCurve


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything that `locate` and `align` find in a run; what needs answers is None or empty where there are none."""

    run: Run
    trajectory: AdapterTrajectory
    transitions: list[Transition]  # every signal of the path
    curve: BehaviourCurve | None
    control: BehaviourCurve | None
    onsets: list[Transition]  # of each scale and question set, against the control where there is one
    thresholds: pd.DataFrame | None  # the onset outside the training domain over the thresholds of aligned and coherent
    aligned: Transition | None  # the onset of their mean aligned score, in which there is no threshold
    alignment: Alignment | None
    judged: str | None = None  # the answers' tables, where they are not the run's own

    @property
    def rotation(self) -> Transition:
        """The rotation of B: the mechanistic transition that behaviour is held against."""
        return strongest_rotation(self.transitions)


def findings(
    run: Run | str | Path, control: Run | str | Path | None = None, answers: str | Path | None = None
) -> Findings:
    """Read a run and look for every transition. Deterministic; some seconds.

    `control` is a run that was asked the same questions at the same steps, such as one on careful data. `answers` are
    judged elsewhere (a table or a folder of them, see `behaviour_curve`); `run` may then be whatever has adapters, and
    the control such tables too. Raises InputError where their steps and the run's do not overlap.
    """
    from em_interp.behaviour.curve import behaviour_curve
    from em_interp.trajectory.load import load_trajectory

    if not isinstance(run, Run):
        run = open_run(run) if answers is None else Run(Path(run))
    if control is not None and not isinstance(control, Run) and not Path(control).exists():
        raise InputError(f"the control {control} does not exist; expected a judged run")
    path = load_trajectory(run if answers is None else run.path)
    transitions = find_transitions(path)
    if answers is None and not run.scores_file.exists():
        return Findings(run, path, transitions, None, None, [], None, None, None)
    curve = behaviour_curve(run if answers is None else answers)
    _check_steps(path, curve, answers or run.path)
    beside = None if control is None else behaviour_curve(control)
    located = onsets(curve, beside)
    main, of_control = curve.outside(), None if beside is None else beside.outside()
    thresholds = None if main is None else onset_by_threshold(main, of_control)
    aligned = None if main is None else onset(main, of_control, "aligned_mean")
    alignment = align(strongest_rotation(transitions), located, path)
    judged = None if answers is None else str(answers)
    return Findings(run, path, transitions, curve, beside, located, thresholds, aligned, alignment, judged)


def _check_steps(path: AdapterTrajectory, curve: BehaviourCurve, where: str | Path) -> None:
    """Raise InputError where the answers cannot be of these checkpoints."""
    first, last = int(path.steps[0]), int(path.steps[-1])
    if not ((curve.steps >= first) & (curve.steps <= last)).any():
        raise InputError(
            f"{where} has answers of steps {curve.steps[0]} to {curve.steps[-1]}, the checkpoints are of {first} to "
            f"{last}; the usual cause is another run, or steps counted in epochs or rows"
        )


def strongest_rotation(transitions: list[Transition], of: str = "B") -> Transition:
    """The clearest rotation of one part of the adapter, or the answer that there is none."""
    return strongest([t for t in transitions if t.signal == "rotation" and t.of == of])


def located(source: str, path: AdapterTrajectory, transitions: list[Transition]) -> dict[str, Any]:
    """What `locate --json` prints."""
    steps = {"first": int(path.steps[0]), "last": int(path.steps[-1]), "count": len(path.steps)}
    return {
        "source": source,
        "steps": steps,
        "sites": list(path.sites),
        "transitions": [transition.to_dict() for transition in transitions],
    }


def keep(values: dict[str, Any], file: Path, resume: bool) -> None:
    """Write what was found; a file that says something else is replaced only with `resume`.

    What the run was called (`r`, `r/`, its whole path) is not a finding: a file that says the same is left as it is.
    """
    if file.exists() and not resume:
        if _finding(read_json(file)) == _finding(values):
            return
        raise InputError(f"{file} holds other findings; give --resume to replace them or another --out")
    try:
        write_json(file, values)
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error.strerror or error}") from error


def _finding(values: Any) -> str:
    return to_json({**values, "source": None} if isinstance(values, dict) else values)
