"""The behaviour of every combination of one thing of step i with another thing of step j, and what it waits for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, Int

from em_interp.behaviour.ask import Base
from em_interp.behaviour.judge import Judge
from em_interp.behaviour.rates import LEVEL, Rate
from em_interp.behaviour.scores import COHERENT_ABOVE, ScoredResponses, is_em
from em_interp.errors import InputError
from em_interp.mechanism.experiments import (
    Group,
    PatchedAdapter,
    SamplingParams,
    path_of,
    questions_of,
    sample_patched_adapters,
)
from em_interp.mechanism.sufficiency import (
    COHERENT,
    Counts,
    Earliest,
    Supply,
    bounds,
    earliest,
    shown,
    sufficient_component,
    supplies,
)
from em_interp.results import Line, html_card, picture
from em_interp.run import Run
from em_interp.trajectory import geometry
from em_interp.trajectory.trajectory import AdapterTrajectory
from em_interp.transition.result import Transition, Verdict

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

Kind = Literal["direction_size", "exchange"]
MAP, CONTROL, BASE, RANDOM, RANDOM_B = "map", "control", "base", "random", "random_B"
THINGS = {"direction_size": ("direction", "size"), "exchange": ("A", "B")}
RANDOMS = {RANDOM: "random directions of the final size", RANDOM_B: "the final A with random B of the final size"}


@dataclass(frozen=True, eq=False, repr=False)
class PatchingGrid:
    """EM and coherent rates of K × K combinations; row i has the first thing of a step, column j the second.

    `direction_size`: rows ΔW_i/‖ΔW_i‖, columns ‖ΔW_j‖. `exchange`: rows A_i, columns B_j, as they are. The diagonal is
    the adapter as trained. An interval of a cell is Wilson's for other answers to the same questions.
    """

    kind: Kind
    steps: Int[np.ndarray, " step"]
    sizes: Float[np.ndarray, " step"]  # ‖ΔW‖ of these steps, all sites together
    answers: pd.DataFrame  # judged; kind, row and column say of which cell
    questions: str | None = None  # the question set
    level: float = LEVEL
    seed: int = 0

    @property
    def things(self) -> tuple[str, str]:
        """What the rows and the columns are steps of."""
        return THINGS[self.kind]

    @property
    def against(self) -> str:
        """What the cells are held against: the control, or the base where there is none."""
        return CONTROL if (self.answers["kind"] == CONTROL).any() else BASE

    def rates(self, kind: str, row: int | None = None, column: int | None = None) -> ScoredResponses:
        """The answers of one cell of the map, or of all that were asked of another kind (`control`, `random` …)."""
        chosen = self.answers[self.answers["kind"] == kind]
        for name, step in (("row", row), ("column", column)):
            chosen = chosen if step is None else chosen[chosen[name] == step]
        return ScoredResponses(chosen, self.level)

    @cached_property
    def _map(self) -> Counts:
        """The counts of the map, (row, column, question)."""
        return self._counts(MAP, (len(self.steps), len(self.steps)))

    @cached_property
    def _control(self) -> Counts:
        return self._counts(self.against, ())

    def _counts(self, kind: str, shape: tuple[int, ...]) -> Counts:
        chosen = self.answers[(self.answers["kind"] == kind) & (self.answers["status"] == "ok")]
        names = np.unique(self.answers["question_id"])
        cell = np.searchsorted(names, chosen["question_id"])
        if shape:
            row, column = (np.searchsorted(self.steps, chosen[name]) for name in ("row", "column"))
            cell = cell + len(names) * (len(self.steps) * row + column)
        shape = (*shape, len(names))
        hits = (np.ones(len(chosen), bool), is_em(chosen), chosen["coherent"] > COHERENT_ABOVE)
        counted = (np.bincount(cell[np.asarray(hit)], minlength=int(np.prod(shape))).reshape(shape) for hit in hits)
        return Counts(*counted)

    @cached_property
    def _lines(self) -> dict[str, Earliest]:
        """Rows with the final column, columns with the final row, and the adapter as trained."""
        every, rng = np.arange(len(self.steps)), np.random.default_rng(self.seed)
        lines = {"row": (every, -1), "column": (-1, every), "as_trained": (every, every)}
        return {
            name: earliest(self.steps, self._map.at(*index), self._control, self.level, rng)
            for name, index in lines.items()
        }

    @property
    def row(self) -> Earliest:
        """The earliest step whose row thing (direction) shows the behaviour with the final column thing (size)."""
        return self._lines["row"]

    @property
    def column(self) -> Earliest:
        """The earliest step whose column thing (size) shows the behaviour with the final row thing (direction)."""
        return self._lines["column"]

    @property
    def as_trained(self) -> Earliest:
        """The earliest of the tested steps at which the adapter as trained shows the behaviour."""
        return self._lines["as_trained"]

    @cached_property
    def supply(self) -> tuple[Supply, Supply] | None:
        """What of the missing behaviour the last step's row thing supplies alone, and what its column thing does."""
        return supplies(self._map, self.level, np.random.default_rng(self.seed))

    @property
    def verdict(self) -> str:
        """What behaviour waits for: `direction` (or A), `size` (or B), `either`, `both`, `neither`, `inconclusive`."""
        found = sufficient_component(self.as_trained, self.supply, self.level)
        return {"row": self.things[0], "column": self.things[1]}.get(found, found)

    def transitions(self) -> list[Transition]:
        """The earliest steps as estimates for the common time axis: of each thing with the other's end, and as trained.

        Signals `sufficient_direction` and `sufficient_size` (or `sufficient_A`, `sufficient_B`) and `shown`.
        """
        first, second = self.things
        return [
            self._transition(f"sufficient_{first}", self.row, f"with the {second} of the last step"),
            self._transition(f"sufficient_{second}", self.column, f"with the {first} of the last step"),
            self._transition("shown", self.as_trained, "as trained"),
        ]

    def _transition(self, signal: str, line: Earliest, how: str) -> Transition:
        what = f"EM beyond the {self.against}'s {how}, at {COHERENT:.0%} coherent"
        reason = (
            f"no tested step shows {what}" if line.step is None else f"step {line.step} is the first to show {what}"
        )
        if line.beyond is not None and line.beyond != line.step:
            reason += f" (less coherent, step {line.beyond} is beyond it already)"
        verdict: Verdict = "transition"
        if line.step is None or line.interval is None:
            verdict = "none" if line.step is None and line.sure <= 1 - self.level else "inconclusive"
            reason += f" (some step does in {line.sure:.0%} of resamplings)"
        found: dict[str, Any] = {"step": float(line.step or 0), "interval": line.interval, "level": self.level}
        return Transition(
            signal, verdict, reason, questions=self.questions, **(found if verdict == "transition" else {})
        )

    def frame(self) -> pd.DataFrame:
        """A row a cell: kind, row and column (steps), size, counts, EM and coherent rates with intervals, shown."""
        import pandas as pd

        size = dict(zip(self.steps.tolist(), self.sizes.tolist(), strict=True))
        limit = bounds(self._control.em, self._control.n, self.level)[1]
        rows = []
        for (kind, row, column), answers in self.answers.groupby(["kind", "row", "column"], sort=True):
            one = ScoredResponses(answers, self.level)
            line: dict[str, Any] = {"kind": kind, "row": row, "column": column}
            line |= {"size": size[column] if kind == MAP else np.nan, "n": one.n, "scored": len(one.scored)}
            for name, rate in (("em", one.em), ("coherent", one.coherent)):
                line |= {name: rate.rate, f"{name}_low": rate.interval[0], f"{name}_high": rate.interval[1]}
            line["shown"] = bool(one.em.interval[0] > limit and one.coherent.rate >= COHERENT)
            rows.append(line)
        return pd.DataFrame(rows)

    def grid(self, of: Literal["em", "coherent"]) -> Float[np.ndarray, "row column"]:
        """A rate of every cell of the map; NaN where no answer could be scored."""
        hits, n = getattr(self._map, of).sum(axis=-1), self._map.n.sum(axis=-1)
        return np.divide(hits, n, out=np.full(n.shape, np.nan), where=n > 0)

    def shown(self) -> np.ndarray:
        """Which cells of the map show the behaviour."""
        return shown(self._map, self._control, self.level)

    def baselines(self) -> dict[str, Rate]:
        """EM rates of what stands beside the map: `control` or `base`, and random adapters of the final size."""
        there = [kind for kind in (CONTROL, BASE, *RANDOMS) if (self.answers["kind"] == kind).any()]
        return {kind: self.rates(kind).em for kind in there}

    def to_dict(self) -> dict[str, Any]:
        """Plain values: verdict, transitions, how far forward, baselines, unscored answers and the map's cells."""
        supply = {} if self.supply is None else dict(zip(self.things, self.supply, strict=True))
        return {
            "kind": self.kind,
            "verdict": self.verdict,
            "sentence": self.sentence(),
            "questions": self.questions,
            "level": self.level,
            "steps": self.steps.tolist(),
            "sizes": self.sizes.tolist(),
            "transitions": [transition.to_dict() for transition in self.transitions()],
            "supplied": {name: {"share": s.share, "interval": list(s.interval)} for name, s in supply.items()},
            "baselines": {kind: rate.to_dict() for kind, rate in self.baselines().items()},
            "unscored": ScoredResponses(self.answers, self.level).unscored,
            "cells": self.frame().to_dict("records"),
        }

    def plot(self) -> go.Figure:
        """EM and coherent rates as maps, the cells that show the behaviour marked."""
        from em_interp.figures.interventions import plot_patching

        cells = self.frame().query("kind == @MAP")
        limit = self.baselines()[self.against].interval[1]
        return plot_patching(cells, self.things, self.transitions(), limit, self.verdict, self.level)

    def sentence(self) -> str:
        """What behaviour waits for, in words, with the earliest steps and the baselines."""
        first, second = self.things
        alone = "of the last step alone would supply more than half of what is missing before"
        said = {
            first: f"behaviour waits for the {first}: that {alone}, the {second} would not",
            second: f"behaviour waits for the {second}: that {alone}, the {first} would not",
            "either": f"behaviour waits for {first} or {second}, whichever comes first: either {alone}",
            "both": f"behaviour waits for both {first} and {second}: neither {alone}",
            "neither": f"there is no behaviour to wait: as trained no step shows EM beyond the {self.against}'s",
            "inconclusive": f"it cannot be told whether behaviour waits for the {first}, the {second} or both",
        }
        parts = [said[self.verdict], *self._supplied()]
        for name, other, line in ((first, second, self.row), (second, first, self.column)):
            parts.append(f"the {name} suffices {self._when(line)} with the last step's {other}")
        parts.append(f"as trained it is shown {self._when(self.as_trained)}")
        for kind in RANDOMS.keys() & self.baselines():
            rate = self.baselines()[kind]
            parts.append(f"{RANDOMS[kind]}: EM {rate.rate:.1%} ({rate.interval[0]:.1%} to {rate.interval[1]:.1%})")
        return "; ".join(parts)

    def _supplied(self) -> list[str]:
        if self.supply is None:
            return []
        shares = zip(self.things, self.supply, strict=True)
        said = [f"the {name} {s.share:.0%} ({s.interval[0]:.0%} to {s.interval[1]:.0%})" for name, s in shares]
        return [f"supplied alone: {', '.join(said)}"]

    def _when(self, line: Earliest) -> str:
        if line.step is None:
            return "at no tested step"
        if line.interval is None:
            return f"from step {line.step} (in {line.sure:.0%} of resamplings at any step)"
        return f"from step {line.step} ({self.level:.0%} interval {line.interval[0]:.0f} to {line.interval[1]:.0f})"

    def __repr__(self) -> str:
        return f"PatchingGrid({self.kind}, {len(self.steps)} steps {self.steps[0]} to {self.steps[-1]}: {self.verdict})"

    def _repr_html_(self) -> str:
        return html_card(self.sentence().split("; "), self._picture(), (".plot()", ".frame()", ".transitions()"))

    def _picture(self) -> str:
        """EM by step: as trained, and with the last step's column or row thing."""
        first, second = self.things
        rate = self.grid("em")
        lines = {"as trained": np.diag(rate), f"final {second}": rate[:, -1], f"final {first}": rate[-1]}
        return picture([Line(self.steps, line, name) for name, line in lines.items()], "EM rate")


# --------
# Direction or size? The behaviour of every direction of the path at every size it had, and of A and B exchanged.
# Multiplying one checkpoint's adapter shows what its direction does at other sizes; only the combination of every
# direction with every size says which of the two behaviour waits for.


CONTROL_CELLS = 4  # times as many answers as a cell of the map: every cell is held against them
FEWEST = 3  # steps


def patch_direction_and_norm(
    run: Run,
    base: Base,
    judge: Judge,
    control: Run | None = None,
    steps: int = 12,
    questions: Sequence[dict[str, str]] | None = None,
    sampling: SamplingParams | None = None,
    random: int = 8,
    level: float = LEVEL,
    resume: bool = False,
    progress: bool = False,
) -> PatchingGrid:
    """Ask ΔW_i · ‖ΔW_j‖/‖ΔW_i‖ for `steps` × `steps` steps, evenly over the run and up to its last, and judge.

    ΔW is that of all sites together, with one norm (Frobenius), so a multiplied adapter keeps the shares of its
    sites. A cell shows the behaviour where the lower end of its EM rate lies above the upper end of the `control`'s
    last step (without one, of the base's), at 90 % coherent or more. Beside the map stand `random` random adapters of
    the final size, site by site, and as many with the final A and a random B.

    `questions` are by default the out-of-domain ones that the run was asked. Everything is kept in
    `run.analysis/direction_size`; with `resume` what is there is not asked or judged again. Raises InputError for
    adapters of another base, fewer than three steps with ΔW > 0, and a run that was asked no such questions.
    """
    return _step_map(
        "direction_size", run, base, judge, control, steps, questions, sampling, random, level, resume, progress
    )


def patch_A_and_B(
    run: Run,
    base: Base,
    judge: Judge,
    control: Run | None = None,
    steps: int = 12,
    questions: Sequence[dict[str, str]] | None = None,
    sampling: SamplingParams | None = None,
    random: int = 0,
    level: float = LEVEL,
    resume: bool = False,
    progress: bool = False,
) -> PatchingGrid:
    """Ask s·B_j·A_i for `steps` × `steps` steps: what is read at one step, written as at another.

    Nothing is rescaled: B starts at zero, so it carries nearly all of the size. A and B of one run belong together
    also across steps, because neither gauge nor order of the rank's components changes while it trains. Otherwise as
    `patch_direction_and_norm`; kept in `run.analysis/exchange`.
    """
    more = (questions, sampling, random, level, resume, progress)
    return _step_map("exchange", run, base, judge, control, steps, *more)


def _step_map(
    kind: Kind,
    run: Run,
    base: Base,
    judge: Judge,
    control: Run | None,
    count: int,
    questions: Sequence[dict[str, str]] | None,
    sampling: SamplingParams | None,
    random: int,
    level: float,
    resume: bool,
    progress: bool,
) -> PatchingGrid:
    path = path_of(run, base)
    if kind == "exchange" and path.kind == "steering":
        raise InputError(f"{run.path} holds steering vectors, which have no A to exchange; LoRA adapters were expected")
    asked = list(questions_of(run, "out_of_domain") if questions is None else questions)
    sampling = SamplingParams() if sampling is None else sampling
    steps, sizes = spread(path, count)
    groups = [
        (path, patched_adapters(kind, steps, sizes)),
        beside(path, control, base),
        *baselines(path, random, sampling.seed),
    ]
    folder = Path(run.analysis) / kind
    answers = sample_patched_adapters(folder, base, judge, asked, groups, sampling, resume, progress)
    sets = {question["questions"] for question in asked}
    only = sets.pop() if len(sets) == 1 else None
    return PatchingGrid(kind, steps, sizes, answers, only, level, sampling.seed)


def spread(path: AdapterTrajectory, count: int) -> tuple[Int[np.ndarray, " step"], Float[np.ndarray, " step"]]:
    """About `count` saved steps, evenly over the run and up to the last, with ΔW > 0, and their ‖ΔW‖."""
    size = geometry.norms(path.gram("delta"))
    there = np.flatnonzero(size > 0)
    if len(there) < FEWEST or count < FEWEST:
        found = f"{len(there)} saved steps with ΔW > 0 and {count} asked for"
        raise InputError(f"a map needs at least {FEWEST} steps; found {found}")
    wanted = path.steps[-1] * np.arange(1, count + 1) / count
    chosen = np.unique([there[np.argmin(np.abs(path.steps[there] - step))] for step in wanted])
    return path.steps[chosen].astype(int), size[chosen]


def patched_adapters(
    kind: Kind, steps: Int[np.ndarray, " step"], sizes: Float[np.ndarray, " step"]
) -> list[PatchedAdapter]:
    """The cells of the map, row by row."""
    pairs = [(i, j) for i in range(len(steps)) for j in range(len(steps))]
    where = [(int(steps[i]), int(steps[j])) for i, j in pairs]
    if kind == "exchange":
        return [PatchedAdapter(MAP, row, column, row, column) for row, column in where]
    ratio = [float(sizes[j] / sizes[i]) for i, j in pairs]
    return [PatchedAdapter(MAP, row, column, row, row, x) for (row, column), x in zip(where, ratio, strict=True)]


def beside(path: AdapterTrajectory, control: Run | None, base: Base) -> Group:
    """What the map is held against: the control's last adapter as trained, or the base."""
    if control is None:
        step = int(path.steps[-1])
        return path, [PatchedAdapter(BASE, number, 0, step, step, 0.0) for number in range(CONTROL_CELLS)]
    careful = path_of(control, base)
    step = int(careful.steps[-1])
    return careful, [PatchedAdapter(CONTROL, number, 0, step, step) for number in range(CONTROL_CELLS)]


def baselines(path: AdapterTrajectory, count: int, seed: int) -> list[Group]:
    """`count` random adapters of the final size, and as many with the final A and a random B."""
    if count == 0:
        return []
    kinds = ((RANDOM, random_adapters(path, count, seed)), (RANDOM_B, random_adapters(path, count, seed, keep_A=True)))
    return [
        (drawn, [PatchedAdapter(kind, number, 0, number, number) for number in range(count)]) for kind, drawn in kinds
    ]


def random_adapters(path: AdapterTrajectory, count: int, seed: int, keep_A: bool = False) -> AdapterTrajectory:
    """`count` adapters with Gaussian A and B (or the final A), at each site of the final rank and ‖ΔW‖.

    They stand as the steps 0 … count − 1 of a path. At rank 1 the direction of ΔW is uniform (of B, where A is kept);
    above it the singular values are those of chance, not those of training.
    """
    rng, A, B = np.random.default_rng(seed), {}, {}
    for site in path.sites:
        size = np.sqrt(path.gram("delta", site)[-1, -1])
        a = np.repeat(path.A[site][-1:], count, axis=0) if keep_A else rng.normal(size=(count, *path.A[site].shape[1:]))
        b = rng.normal(size=(count, *path.B[site].shape[1:]))
        drawn = AdapterTrajectory(
            np.arange(count), {site: a.astype(np.float32)}, {site: b.astype(np.float32)}, {site: path.scale[site]}
        )
        length = geometry.norms(drawn.gram("delta"))
        A[site], B[site] = drawn.A[site], (b * (size / length)[:, None, None]).astype(np.float32)
    return AdapterTrajectory(np.arange(count), A, B, dict(path.scale), base=path.base)
