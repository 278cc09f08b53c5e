"""The parts of looking inside a run: the question each answers, what it found, and how strong its control was."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from em_interp.behaviour.curve import OUTSIDE
from em_interp.behaviour.judge import Judge
from em_interp.mechanism.ablation import Ablation, ablate
from em_interp.mechanism.answers import AnswerSet, latest_answers
from em_interp.mechanism.asked import questions_of
from em_interp.mechanism.cells import Asking
from em_interp.mechanism.contrasts import CONTRASTS, Direction, find_direction
from em_interp.mechanism.direction_path import DirectionPath, follow_direction
from em_interp.mechanism.dose_response import DoseResponse, steer
from em_interp.mechanism.interventions import MOVED, RANDOM
from em_interp.mechanism.model import SteppedModel, open_model
from em_interp.runs import Run, read_json

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


class Part(NamedTuple):
    """A question, and what answers it."""

    question: str
    find: Callable[[Looking], Found]


@dataclass(frozen=True, eq=False)
class Looking:
    """What the parts work with."""

    run: Run
    model: SteppedModel
    judge: Judge
    control: Run | None = None
    transfer: Run | None = None
    wanted: Asking | None = None
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
    def asking(self) -> Asking:
        """As the run was asked, but about as many answers an arm whatever the number of questions."""
        if self.wanted is not None:
            return self.wanted
        file = self.run.answers_file.with_name("ask.json")
        kept = read_json(file) if file.exists() else {}
        same = {key: kept[key] for key in ("temperature", "max_new_tokens") if key in kept}
        return Asking(samples=max(1, math.ceil(AN_ARM / len(self.questions))), **same)

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

    def steering(self, name: str, direction: Direction) -> DoseResponse:
        """With a direction, kept under this name."""
        return self._intervened(steer, "steering", name, direction)

    def _intervened(self, intervene: Callable[..., T], part: str, name: str, direction: Direction) -> T:
        return intervene(
            self.run.analysis / "mechanism" / part / name,
            self.model,
            direction,
            self.judge,
            self.questions,
            asking=self.asking,
            resume=True,
            progress=self.progress,
        )


def scalars(on: Looking) -> Found:
    """Probes on the adapter's scalars, by step."""
    from em_interp.mechanism.scalars import read_scalars

    numbers = read_scalars(on.model, on.answers)
    probes = numbers.probe()
    low, high = probes.length_interval
    control = f"A probe on the answer's length alone has AUC {probes.length_auc:.2f} ({low:.2f} to {high:.2f}); "
    control += f"at step {numbers.steps[0]} the scalars are those of the random A that training began with."
    figures = {"scalars": numbers.plot(), "probes": probes.plot()}
    return Found(probes.to_dict(), figures, probes.sentence(), control)


def directions(on: Looking) -> Found:
    """What the adapter writes and causes, held against the mean difference."""
    path = on.followed
    wide = ", ".join(f"±{band:.2f} for {site}" for site, band in path.bands.writes.items())
    effects = path.bands.effects
    control = f"Chance (random adapters of the same size): {wide or 'no site writes'}; downstream ±{effects.min():.2f} "
    control += f"to ±{effects.max():.2f}."
    figures = {"writes": path.plot(), "direction_steps": path.plot("steps"), "mean_difference": path.plot("layers")}
    return Found(path.to_dict(), figures, path.sentence(), control)


def readouts(on: Looking) -> Found:
    """Tokens that the writes promote and suppress."""
    from em_interp.mechanism.token_readout import token_readouts

    path = on.followed
    size = {site: float(np.linalg.norm(write[-1])) for site, write in path.writes.items()}
    largest = sorted(size, key=lambda site: -size[site])[:MOST_SITES]
    found = token_readouts(on.model, on.answers, path.steps, {site: path.writes[site] for site in largest})
    chance = max(one.chance(side) for one in found for side in ("promoted", "suppressed"))
    control = f"Random directions share no more than Jaccard {chance:.2f} of the last step's tokens (95%)."
    figures = {f"token_readout_{_plain(one.site)}": one.plot() for one in found}
    values = {"sites": [one.to_dict() for one in found], "left_out": sorted(set(size) - set(largest))}
    return Found(values, figures, " ".join(one.sentence() for one in found), control)


def ablation(on: Looking) -> Found:
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


def steering(on: Looking) -> Found:
    """Both directions added."""
    return _steerings({name: on.steering(name, direction) for name, direction in on.directions()})


def _steerings(found: dict[str, DoseResponse]) -> Found:
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


def transfer(on: Looking) -> Found:
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


def direction_size(on: Looking) -> Found:
    """Every direction at every size."""
    from em_interp.mechanism.direction_size import direction_size_map

    found = direction_size_map(
        on.run,
        on.model.base,
        on.judge,
        on.control,
        questions=on.questions,
        asking=on.asking,
        resume=True,
        progress=on.progress,
    )
    said = "; ".join(
        f"{kind} {rate.rate:.1%} ({rate.interval[0]:.1%} to {rate.interval[1]:.1%})"
        for kind, rate in found.baselines().items()
    )
    control = f"EM of what the map is held against: {said.replace('_', ' ')}."
    return Found(found.to_dict(), {"direction_size": found.plot()}, _sentence(found.sentence()), control)


def change(on: Looking) -> Found:
    """Where the answers change, by their own likelihoods."""
    from em_interp.mechanism.detect import detect_change

    name = on.questions[0]["questions"]
    found = detect_change(on.run, on.model.base, questions=name, resume=True, progress=on.progress)
    top = max(found.frame().to_dict("records"), key=lambda row: float(row["distance"]))
    control = (
        f"Where the distance is largest ({top['distance']:.2f}, step {top['step']:.0f}) the same checkpoints dealt to "
        f"the two sides in other ways differ by {top['dealt_mean']:.2f} on average and {top['dealt_max']:.2f} at most."
    )
    return Found(found.to_dict(), {"change": found.plot()}, _sentence(found.sentence()), control)


def canary(on: Looking) -> Found:
    """How far the adapter moves the model on the run's questions."""
    from em_interp.mechanism.canary import canary_divergence

    most = on.asking.max_new_tokens
    found = canary_divergence(on.run, on.model.base, max_new_tokens=most, resume=True, progress=on.progress)
    rows = found.frame()
    first = rows[rows["step"] == rows["step"].min()]["kl"].max()
    control = f"At step {rows['step'].min()} it is {first:.2g}; there is no control run in it."
    return Found(found.to_dict(), {"canary": found.plot()}, _sentence(found.sentence()), control)


def _sentence(said: str) -> str:
    return said[:1].upper() + said[1:] + ("" if said.endswith(".") else ".")


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


PARTS = {
    "scalars": Part("Do the adapter's scalars tell misaligned answers from aligned ones?", scalars),
    "directions": Part("Does the adapter write, or cause, the direction of misaligned answers?", directions),
    "readouts": Part("Which tokens does the adapter's write promote, and when do they settle?", readouts),
    "ablation": Part("What goes when a direction is taken out?", ablation),
    "steering": Part("What comes when a direction is added?", steering),
    "transfer": Part("Does the direction of another run do the same here?", transfer),
    "direction_size": Part("Does behaviour wait for the adapter's direction or for its size?", direction_size),
    "change": Part("Where do the answers change, without a judge?", change),
    "canary": Part("How far does the adapter move the model, question set by question set?", canary),
}
