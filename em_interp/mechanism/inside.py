"""Looking inside a run: one part after another, each kept when it is done, and what was found in words.

A part that cannot be had (too few misaligned answers, say) is reported with its reason, and the others go on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_interp.behaviour.judge import Judge
from em_interp.errors import InputError, nearest
from em_interp.mechanism.asked import digest
from em_interp.mechanism.cells import Asking
from em_interp.mechanism.inside_parts import PARTS, Looking
from em_interp.mechanism.model import SteppedModel
from em_interp.mechanism.parts import begin
from em_interp.runs import Run, read_json, resumable, write_json
from em_interp.trajectory.load import load_trajectory
from em_interp.transition.result import Transition

if TYPE_CHECKING:
    import plotly.graph_objects as go

Tell = Callable[[str], None]


def look_inside(
    run: Run,
    model: SteppedModel,
    judge: Judge,
    control: Run | None = None,
    transfer: Run | None = None,
    parts: Sequence[str] | None = None,
    asking: Asking | None = None,
    resume: bool = False,
    progress: bool = False,
    tell: Tell = lambda says: None,
) -> dict[str, Any]:
    """Carry out the parts of `PARTS` (by default all) on a judged run, and return what `mechanism.json` then holds.

    `model` is the run opened in an engine. `control` is a run on careful data: the direction–size map is held against
    its last step. `transfer` is another run on the same base, whose directions are tried on this one. Interventions
    ask the run's out-of-domain questions as `asking` says, by default about 108 answers an arm. Finished parts are
    kept in `run.analysis/mechanism`; with `resume` they are not done again. `tell` is called with a line at the
    beginning of each part.

    Raises InputError for an unknown part, a run without scores, results that are there already (without `resume`) or
    were begun with other settings.
    """
    chosen = _chosen(parts, transfer)
    if not run.scores_file.exists():
        raise InputError(f"{run.scores_file} is missing: ask and judge the run before looking inside")
    looking = Looking(run, model, judge, control, transfer, asking, progress)
    folder = _folder(run)
    with resumable(folder):
        begin(folder / "settings.json", _settings(looking), resume)
        if transfer is not None:  # may come later, when other parts are done
            begin(folder / "transfer" / "settings.json", {"transfer": _last(transfer)}, resume=True)
        for name in chosen:
            _carry_out(name, looking, tell)
        found = _together(run, looking)
        write_json(run.analysis / "mechanism.json", found)
    return found


def _chosen(parts: Sequence[str] | None, transfer: Run | None) -> list[str]:
    for name in parts or ():
        if name not in PARTS:
            raise InputError(f"there is no part {name!r}{nearest(name, tuple(PARTS))} (there are {', '.join(PARTS)})")
    if parts and "transfer" in parts and transfer is None:
        raise InputError("the part transfer needs the run whose direction is to be tried: give --transfer RUN")
    return [name for name in PARTS if name in (parts or PARTS) and (name != "transfer" or transfer is not None)]


def _folder(run: Run) -> Path:
    return run.analysis / "mechanism"


def _settings(looking: Looking) -> dict[str, Any]:
    """What the results depend on."""
    path = looking.model.trajectory
    return {
        "base": looking.model.base.identity,
        "adapters": digest(path, path.steps.tolist()),
        "engine": looking.model.engine.name,
        "scores": hashlib.sha256(looking.run.scores_file.read_bytes()).hexdigest()[:16],
        "asking": vars(looking.asking),
        "questions": [dict(question) for question in looking.questions],
        "control": None if looking.control is None else _last(looking.control),
    }


def _last(run: Run) -> str:
    path = load_trajectory(run)
    return digest(path, [int(path.steps[-1])])


def _carry_out(name: str, looking: Looking, tell: Tell) -> None:
    """One part, unless it is there; one that cannot be had leaves its reason, and is tried again another time."""
    folder = _folder(looking.run)
    if (folder / f"{name}.json").exists():
        return
    tell(f"{name}: {PARTS[name].question}")
    try:
        found = PARTS[name].find(looking)
    except InputError as error:
        write_json(folder / "undefined" / f"{name}.json", {"undefined": str(error)})
        tell(f"{name}: undefined, {error}")
        return
    figures = {title: _values(figure) for title, figure in found.figures.items()}
    write_json(folder / "figures" / f"{name}.json", figures)
    said = {"question": PARTS[name].question, "found": found.found, "control": found.control}
    write_json(folder / f"{name}.json", {**said, "values": found.values})
    (folder / "undefined" / f"{name}.json").unlink(missing_ok=True)


def _values(figure: go.Figure) -> dict[str, Any]:
    """A figure as plain values; plotly's own JSON packs arrays, which it then cannot read back as numbers."""
    traces = [trace.to_plotly_json() for trace in figure.data]
    return {"data": traces, "layout": figure.layout.to_plotly_json()}


def _together(run: Run, looking: Looking) -> dict[str, Any]:
    """Everything that is there, in the order of the parts."""
    folder, parts = _folder(run), {}
    for name, part in PARTS.items():
        done, undefined = folder / f"{name}.json", folder / "undefined" / f"{name}.json"
        if done.exists():
            parts[name] = read_json(done)
        elif undefined.exists():
            parts[name] = {"question": part.question, **read_json(undefined)}
    model, control = looking.model, looking.control
    about: dict[str, Any] = {"run": run.path.name, "base": model.base.identity, "engine": model.engine.name}
    about |= {"control": None if control is None else control.path.name}
    return {**about, "answers": looking.answers.to_dict(), "parts": parts}


def kept(run: Run) -> dict[str, Any] | None:
    """What `mechanism.json` of a run holds; None where nobody has looked inside."""
    file = run.analysis / "mechanism.json"
    return read_json(file) if file.exists() else None


def kept_transitions(run: Run) -> list[Transition]:
    """The steps that were found, for the run's time axis: direction and size that suffice, change of the answers."""
    parts = (kept(run) or {"parts": {}})["parts"]
    there = {name: part["values"] for name, part in parts.items() if "values" in part}
    found = there["direction_size"]["transitions"] if "direction_size" in there else []
    return [Transition.from_dict(one) for one in found + ([there["change"]["peak"]] if "change" in there else [])]


def kept_figures(run: Run) -> dict[str, dict[str, go.Figure]]:
    """The figures of each part that was carried out, by name."""
    from plotly.graph_objects import Figure

    found = {}
    for name in PARTS:
        file = _folder(run) / "figures" / f"{name}.json"
        if file.exists() and (_folder(run) / f"{name}.json").exists():
            found[name] = {title: Figure(figure) for title, figure in read_json(file).items()}
    return found
