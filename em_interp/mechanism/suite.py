"""The parts of looking inside a run: the question each answers, what it found, and how strong its control was."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from em_interp.behaviour.curve import OUTSIDE
from em_interp.behaviour.judge import Judge
from em_interp.errors import InputError, nearest
from em_interp.files import read_json, resumable, write_json
from em_interp.mechanism.ablation import Ablation, ablate
from em_interp.mechanism.answers import AnswerSet, latest_answers
from em_interp.mechanism.attribution import DirectionPath, follow_direction
from em_interp.mechanism.directions import CONTRASTS, Direction, find_direction
from em_interp.mechanism.experiments import MOVED, RANDOM, SamplingParams, begin, digest, questions_of
from em_interp.mechanism.model import TrajectoryModel, open_model
from em_interp.mechanism.steering import SteeringCurve, steer
from em_interp.run import Run
from em_interp.trajectory.load import load_trajectory
from em_interp.transition.result import Transition

if TYPE_CHECKING:
    import plotly.graph_objects as go

T = TypeVar("T")
AN_ARM = 108  # answers, about: 18 questions, 6 times
MOST_SITES = 3  # read out in tokens


class Found(NamedTuple):
    """What a part came to: plain values, figures by name, and in words what was found beside which control."""

    values: dict[str, Any]
    figures: dict[str, go.Figure]
    found: str
    control: str


class Analysis(NamedTuple):
    """A question, and what answers it."""

    question: str
    find: Callable[[SuiteContext], Found]


@dataclass(frozen=True, eq=False)
class SuiteContext:
    """What the parts work with."""

    run: Run
    model: TrajectoryModel
    judge: Judge
    control: Run | None = None
    transfer: Run | None = None
    wanted: SamplingParams | None = None
    progress: bool = False
    _held: dict[str, Direction] = field(default_factory=dict)

    @cached_property
    def questions(self) -> list[dict[str, str]]:
        """What interventions ask: the questions outside the training domain, or all where no set is called so."""
        asked = questions_of(self.run)
        sets = {question["questions"] for question in asked}
        main = next((name for name in OUTSIDE if name in sets), None)
        return [question for question in asked if main in (None, question["questions"])]

    @cached_property
    def sampling(self) -> SamplingParams:
        """As the run was asked, but about as many answers an arm whatever the number of questions."""
        if self.wanted is not None:
            return self.wanted
        file = self.run.answers_file.with_name("ask.json")
        kept = read_json(file) if file.exists() else {}
        same = {key: kept[key] for key in ("temperature", "max_new_tokens") if key in kept}
        return SamplingParams(samples=max(1, math.ceil(AN_ARM / len(self.questions))), **same)

    @cached_property
    def answers(self) -> AnswerSet:
        """The last step's answers to questions outside the training domain, a small group filled from earlier steps."""
        return latest_answers(self.run)

    @cached_property
    def followed(self) -> DirectionPath:
        """The mean difference along the run."""
        return follow_direction(self.model, self.answers)

    def directions(self) -> Iterator[tuple[str, Direction]]:
        """The direction of each contrast."""
        for contrast in CONTRASTS:
            if contrast not in self._held:
                self._held[contrast] = find_direction(self.model, self.answers, contrast)
            yield contrast, self._held[contrast]

    def ablation(self, name: str, direction: Direction) -> Ablation:
        """Of a direction, kept under this name."""
        return self._intervened(ablate, "ablation", name, direction)

    def steering(self, name: str, direction: Direction) -> SteeringCurve:
        """With a direction, kept under this name."""
        return self._intervened(steer, "steering", name, direction)

    def _intervened(self, intervene: Callable[..., T], part: str, name: str, direction: Direction) -> T:
        return intervene(
            self.run.analysis / "mechanism" / part / name,
            self.model,
            direction,
            self.judge,
            self.questions,
            sampling=self.sampling,
            resume=True,
            progress=self.progress,
        )


def scalars(on: SuiteContext) -> Found:
    """Probes on the adapter's scalars, by step."""
    from em_interp.mechanism.scalars import read_scalars

    numbers = read_scalars(on.model, on.answers)
    probes = numbers.probe()
    low, high = probes.length_interval
    control = f"A probe on the answer's length alone has AUC {probes.length_auc:.2f} ({low:.2f} to {high:.2f}); "
    control += f"at step {numbers.steps[0]} the scalars are those of the random A that training began with."
    figures = {"scalars": numbers.plot(), "probes": probes.plot()}
    return Found(probes.to_dict(), figures, probes.sentence(), control)


def directions(on: SuiteContext) -> Found:
    """What the adapter writes and causes, held against the mean difference."""
    path = on.followed
    wide = ", ".join(f"±{band:.2f} for {site}" for site, band in path.bands.writes.items())
    effects = path.bands.effects
    control = f"Chance (random adapters of the same size): {wide or 'no site writes'}; downstream ±{effects.min():.2f} "
    control += f"to ±{effects.max():.2f}."
    figures = {"writes": path.plot(), "direction_steps": path.plot("steps"), "mean_difference": path.plot("layers")}
    return Found(path.to_dict(), figures, path.sentence(), control)


def readouts(on: SuiteContext) -> Found:
    """Tokens that the writes promote and suppress."""
    from em_interp.mechanism.logit_lens import read_logit_lens

    path = on.followed
    size = {site: float(np.linalg.norm(write[-1])) for site, write in path.writes.items()}
    largest = sorted(size, key=lambda site: -size[site])[:MOST_SITES]
    found = read_logit_lens(on.model, on.answers, path.steps, {site: path.writes[site] for site in largest})
    chance = max(one.chance(side) for one in found for side in ("promoted", "suppressed"))
    control = f"Random directions share no more than Jaccard {chance:.2f} of the last step's tokens (95%)."
    figures = {f"token_readout_{_plain(one.site)}": one.plot() for one in found}
    values = {"sites": [one.to_dict() for one in found], "left_out": sorted(set(size) - set(largest))}
    return Found(values, figures, " ".join(one.sentence() for one in found), control)


def ablation(on: SuiteContext) -> Found:
    """Both directions taken out."""
    return _ablations({name: on.ablation(name, direction) for name, direction in on.directions()})


def _ablations(found: dict[str, Ablation]) -> Found:
    said = []
    for one in found.values():
        random, moved = (one.row(kind, one.best()) for kind in (RANDOM, MOVED))
        said.append(
            f"After {one.best()}, {random['directions']} random directions removed {random['removed']:.0%} (up to "
            f"{random['removed_most']:.0%} each); as much moved at random {moved['removed']:.0%}."
        )
    values = {name: one.to_dict() for name, one in found.items()}
    figures = {f"ablation_{name}": one.plot() for name, one in found.items()}
    return Found(values, figures, " ".join(one.sentence() for one in found.values()), " ".join(dict.fromkeys(said)))


def steering(on: SuiteContext) -> Found:
    """Both directions added."""
    return _steerings({name: on.steering(name, direction) for name, direction in on.directions()})


def _steerings(found: dict[str, SteeringCurve]) -> Found:
    said = []
    for one in found.values():
        rows = one.frame().query("held == 'base' and kind == @RANDOM", local_dict={"RANDOM": RANDOM})
        said.append(
            f"Of {int(rows['directions'].max())} random directions of the same lengths, none brought more than EM "
            f"{rows['em_most'].max():.1%} to the base at any dose; left alone it shows {one.rates('base').em.rate:.1%}."
        )
    values = {name: one.to_dict() for name, one in found.items()}
    figures = {f"steering_{name}": one.plot() for name, one in found.items()}
    return Found(values, figures, " ".join(one.sentence() for one in found.values()), " ".join(dict.fromkeys(said)))


def transfer(on: SuiteContext) -> Found:
    """Another run's directions, taken out of this run's model and added to the base."""
    assert on.transfer is not None
    other = open_model(on.transfer, on.model.base, on.model.engine.name)  # type: ignore[arg-type]
    answers = latest_answers(on.transfer)
    theirs: dict[str, Direction] = {contrast: find_direction(other, answers, contrast) for contrast in CONTRASTS}
    mine = {name: direction.cosine(theirs[name]).tolist() for name, direction in on.directions()}
    taken = _ablations({name: on.ablation(f"of_other_{name}", one) for name, one in theirs.items()})
    added = _steerings({name: on.steering(f"of_other_{name}", one) for name, one in theirs.items()})
    values = {"source": on.transfer.path.name, "cosine": mine, "ablation": taken.values, "steering": added.values}
    figures = {f"transfer_{name}": figure for name, figure in (taken.figures | added.figures).items()}
    cosines = "; ".join(f"{name} {min(cos):.2f} to {max(cos):.2f}" for name, cos in mine.items())
    found = f"Directions of {on.transfer.path.name} (cosine to this run's own over the layers: {cosines}). "
    return Found(values, figures, found + f"{taken.found} {added.found}", f"{taken.control} {added.control}")


def direction_size(on: SuiteContext) -> Found:
    """Every direction at every size."""
    from em_interp.mechanism.patching import patch_direction_and_norm

    found = patch_direction_and_norm(
        on.run,
        on.model.base,
        on.judge,
        on.control,
        questions=on.questions,
        sampling=on.sampling,
        resume=True,
        progress=on.progress,
    )
    said = "; ".join(
        f"{kind} {rate.rate:.1%} ({rate.interval[0]:.1%} to {rate.interval[1]:.1%})"
        for kind, rate in found.baselines().items()
    )
    control = f"EM of what the map is held against: {said.replace('_', ' ')}."
    return Found(found.to_dict(), {"direction_size": found.plot()}, _sentence(found.sentence()), control)


def change(on: SuiteContext) -> Found:
    """Where the answers change, by their own likelihoods."""
    from em_interp.mechanism.answer_shift.detect import detect_answer_shift

    name = on.questions[0]["questions"]
    found = detect_answer_shift(on.run, on.model.base, questions=name, resume=True, progress=on.progress)
    top = max(found.frame().to_dict("records"), key=lambda row: float(row["distance"]))
    control = (
        f"Where the distance is largest ({top['distance']:.2f}, step {top['step']:.0f}) the same checkpoints dealt to "
        f"the two sides in other ways differ by {top['dealt_mean']:.2f} on average and {top['dealt_max']:.2f} at most."
    )
    return Found(found.to_dict(), {"change": found.plot()}, _sentence(found.sentence()), control)


def canary(on: SuiteContext) -> Found:
    """How far the adapter moves the model on the run's questions."""
    from em_interp.mechanism.kl_from_base import measure_kl_from_base

    most = on.sampling.max_new_tokens
    found = measure_kl_from_base(on.run, on.model.base, max_new_tokens=most, resume=True, progress=on.progress)
    rows = found.frame()
    first = rows[rows["step"] == rows["step"].min()]["kl"].max()
    control = f"At step {rows['step'].min()} it is {first:.2g}; there is no control run in it."
    return Found(found.to_dict(), {"canary": found.plot()}, _sentence(found.sentence()), control)


def _sentence(said: str) -> str:
    return said[:1].upper() + said[1:] + ("" if said.endswith(".") else ".")


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


ANALYSES = {
    "scalars": Analysis("Do the adapter's scalars tell misaligned answers from aligned ones?", scalars),
    "directions": Analysis("Does the adapter write, or cause, the direction of misaligned answers?", directions),
    "readouts": Analysis("Which tokens does the adapter's write promote, and when do they settle?", readouts),
    "ablation": Analysis("What goes when a direction is taken out?", ablation),
    "steering": Analysis("What comes when a direction is added?", steering),
    "transfer": Analysis("Does the direction of another run do the same here?", transfer),
    "direction_size": Analysis("Does behaviour wait for the adapter's direction or for its size?", direction_size),
    "change": Analysis("Where do the answers change, without a judge?", change),
    "canary": Analysis("How far does the adapter move the model, question set by question set?", canary),
}


# --------
# Looking inside a run: one part after another, each kept when it is done, and what was found in words.
# A part that cannot be had (too few misaligned answers, say) is reported with its reason, and the others go on.


Log = Callable[[str], None]


def run_suite(
    run: Run,
    model: TrajectoryModel,
    judge: Judge,
    control: Run | None = None,
    transfer: Run | None = None,
    parts: Sequence[str] | None = None,
    sampling: SamplingParams | None = None,
    resume: bool = False,
    progress: bool = False,
    log: Log = lambda says: None,
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
    looking = SuiteContext(run, model, judge, control, transfer, sampling, progress)
    folder = _folder(run)
    with resumable(folder):
        begin(folder / "settings.json", _settings(looking), resume)
        if transfer is not None:  # may come later, when other parts are done
            begin(folder / "transfer" / "settings.json", {"transfer": _last(transfer)}, resume=True)
        for name in chosen:
            _carry_out(name, looking, log)
        found = _together(run, looking)
        write_json(run.analysis / "mechanism.json", found)
    return found


def _chosen(parts: Sequence[str] | None, transfer: Run | None) -> list[str]:
    for name in parts or ():
        if name not in ANALYSES:
            raise InputError(
                f"there is no part {name!r}{nearest(name, tuple(ANALYSES))} (there are {', '.join(ANALYSES)})"
            )
    if parts and "transfer" in parts and transfer is None:
        raise InputError("the part transfer needs the run whose direction is to be tried: give --transfer RUN")
    return [name for name in ANALYSES if name in (parts or ANALYSES) and (name != "transfer" or transfer is not None)]


def _folder(run: Run) -> Path:
    return run.analysis / "mechanism"


def _settings(looking: SuiteContext) -> dict[str, Any]:
    """What the results depend on."""
    path = looking.model.trajectory
    return {
        "base": looking.model.base.identity,
        "adapters": digest(path, path.steps.tolist()),
        "engine": looking.model.engine.name,
        "scores": hashlib.sha256(looking.run.scores_file.read_bytes()).hexdigest()[:16],
        "asking": vars(looking.sampling),
        "questions": [dict(question) for question in looking.questions],
        "control": None if looking.control is None else _last(looking.control),
    }


def _last(run: Run) -> str:
    path = load_trajectory(run)
    return digest(path, [int(path.steps[-1])])


def _carry_out(name: str, looking: SuiteContext, log: Log) -> None:
    """One part, unless it is there; one that cannot be had leaves its reason, and is tried again another time."""
    folder = _folder(looking.run)
    if (folder / f"{name}.json").exists():
        return
    log(f"{name}: {ANALYSES[name].question}")
    try:
        found = ANALYSES[name].find(looking)
    except InputError as error:
        write_json(folder / "undefined" / f"{name}.json", {"undefined": str(error)})
        log(f"{name}: undefined, {error}")
        return
    figures = {title: _values(figure) for title, figure in found.figures.items()}
    write_json(folder / "figures" / f"{name}.json", figures)
    said = {"question": ANALYSES[name].question, "found": found.found, "control": found.control}
    write_json(folder / f"{name}.json", {**said, "values": found.values})
    (folder / "undefined" / f"{name}.json").unlink(missing_ok=True)


def _values(figure: go.Figure) -> dict[str, Any]:
    """A figure as plain values; plotly's own JSON packs arrays, which it then cannot read back as numbers."""
    traces = [trace.to_plotly_json() for trace in figure.data]
    return {"data": traces, "layout": figure.layout.to_plotly_json()}


def _together(run: Run, looking: SuiteContext) -> dict[str, Any]:
    """Everything that is there, in the order of the parts."""
    folder, parts = _folder(run), {}
    for name, part in ANALYSES.items():
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
    for name in ANALYSES:
        file = _folder(run) / "figures" / f"{name}.json"
        if file.exists() and (_folder(run) / f"{name}.json").exists():
            found[name] = {title: Figure(figure) for title, figure in read_json(file).items()}
    return found
