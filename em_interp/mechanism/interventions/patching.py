"""Patching: the behaviour of one component of step i's adapter with another component of step j's.

`patch` combines every direction of ΔW on the path with every norm that it had. Scaling one checkpoint's adapter shows
what its direction does at other norms; only the combinations show which of the two is sufficient. With
`components="A_B"` it combines A of every step with B of every other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from em_interp.behaviour.judging.judge import Judge
from em_interp.behaviour.rates import LEVEL, Rate
from em_interp.behaviour.scores import ScoredResponses
from em_interp.errors import InputError
from em_interp.mechanism.interventions.experiments import (
    Questions,
    SamplingParams,
    main_questions,
    rate_columns,
    run_experiment,
)
from em_interp.mechanism.interventions.patched_adapters import (
    BASE,
    COMPONENTS,
    CONTROL,
    GRID,
    RANDOM_KINDS,
    Components,
    PatchingExperiment,
    control_adapters,
    grid_steps,
    patched_adapters,
    random_patched_adapters,
)
from em_interp.mechanism.interventions.sufficiency import (
    MIN_COHERENT,
    AnswerCounts,
    FirstSufficient,
    Recovered,
    first_sufficient,
    rate_intervals,
    recovered,
    sufficient_component,
)
from em_interp.mechanism.model import TrajectoryModel, as_model
from em_interp.results import Line, Result, interval_text, picture
from em_interp.trajectory.load import TrajectorySource
from em_interp.transition.result import Transition, Verdict
from em_interp.utils.checks import check_known, check_level, checked
from em_interp.utils.stages import Storage

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False, repr=False)
class PatchingGrid(Result):
    """EM and coherent rates of K × K patched adapters: the row component of step i with the column component of step j.

    `direction_norm`: rows ΔW_i/‖ΔW_i‖, columns ‖ΔW_j‖. `A_B`: rows A_i, columns B_j, as they are. The diagonal is the
    adapter as trained. The interval of a cell is Wilson's for other answers to the same questions.

    Attributes:
        components: what the rows and the columns are steps of.
        steps: the training steps of the rows, which are those of the columns.
        norms: ‖ΔW‖ of these steps, all sites together.
        answers: the judged answers; `kind`, `row` and `column` name the patched adapter of each.
        question_set: the question set of the answers; None where there are several.
        level: confidence level of the intervals.
        seed: random seed of the resampling.
    """

    NEXT: ClassVar = (".plot()", ".frame()", ".transitions()")

    components: Components
    steps: Int[np.ndarray, " step"]
    norms: Float[np.ndarray, " step"]
    answers: pd.DataFrame
    question_set: str | None = None
    level: float = LEVEL
    seed: int = 0

    @property
    def names(self) -> tuple[str, str]:
        """The names of the row component and of the column component."""
        return COMPONENTS[self.components]

    @property
    def control(self) -> str:
        """The kind that the cells are compared with: the control, or the base where there is none."""
        return CONTROL if (self.answers["kind"] == CONTROL).any() else BASE

    def rates(self, kind: str, row: int | None = None, column: int | None = None) -> ScoredResponses:
        """The answers of one cell of the grid, or of all of another kind (`control`, `random` …)."""
        chosen = self.answers[self.answers["kind"] == kind]
        for name, step in (("row", row), ("column", column)):
            chosen = chosen if step is None else chosen[chosen[name] == step]
        return ScoredResponses(chosen, self.level)

    @cached_property
    def _counts(self) -> AnswerCounts:
        """The counts of the grid's cells, (row, column, question)."""
        chosen, k = self.answers[self.answers["kind"] == GRID], len(self.steps)
        row, column = (np.searchsorted(self.steps, chosen[name]) for name in ("row", "column"))
        return AnswerCounts.of(chosen, self.answers, k * row + column, (k, k))

    @cached_property
    def _control_counts(self) -> AnswerCounts:
        chosen = self.answers[self.answers["kind"] == self.control]
        return AnswerCounts.of(chosen, self.answers)

    @cached_property
    def _of_lines(self) -> dict[str, FirstSufficient]:
        """Every row component with the final column component, the reverse, and the adapter as trained."""
        every, rng = np.arange(len(self.steps)), np.random.default_rng(self.seed)
        lines = {"row": (every, -1), "column": (-1, every), "as_trained": (every, every)}
        return {
            name: first_sufficient(self.steps, self._counts.at(*index), self._control_counts, self.level, rng)
            for name, index in lines.items()
        }

    @property
    def row(self) -> FirstSufficient:
        """The first step whose row component (direction) is sufficient with the final column component (norm)."""
        return self._of_lines["row"]

    @property
    def column(self) -> FirstSufficient:
        """The first step whose column component (norm) is sufficient with the final row component (direction)."""
        return self._of_lines["column"]

    @property
    def as_trained(self) -> FirstSufficient:
        """The first tested step at which the adapter as trained shows the behaviour."""
        return self._of_lines["as_trained"]

    @cached_property
    def recovered(self) -> tuple[Recovered, Recovered] | None:
        """The shares of the missing behaviour that the final row and the final column component recover alone."""
        return recovered(self._counts, self.level, np.random.default_rng(self.seed))

    @property
    def verdict(self) -> str:
        """The sufficient component: `direction` (or A), `norm` (or B), `either`, `both`, `none`, `inconclusive`."""
        component = sufficient_component(self.as_trained, self.recovered, self.level)
        return {"row": self.names[0], "column": self.names[1]}.get(component, component)

    def transitions(self) -> list[Transition]:
        """The first sufficient steps as estimates for the common time axis.

        Signals `sufficient_direction` and `sufficient_norm` (or `sufficient_A` and `sufficient_B`), each with the
        other component of the last step, and `sufficient_as_trained`.
        """
        first, second = self.names
        return [
            self._transition(f"sufficient_{first}", self.row, f"with the {second} of the last step"),
            self._transition(f"sufficient_{second}", self.column, f"with the {first} of the last step"),
            self._transition("sufficient_as_trained", self.as_trained, "as trained"),
        ]

    def _transition(self, signal: str, line: FirstSufficient, how: str) -> Transition:
        effect = f"EM above the {self.control}'s {how}, at {MIN_COHERENT:.0%} coherent"
        reason = (
            f"no tested step shows {effect}" if line.step is None else f"step {line.step} is the first to show {effect}"
        )
        if line.first_above_control is not None and line.first_above_control != line.step:
            reason += f" (less coherent, step {line.first_above_control} is above it already)"
        verdict: Verdict = "transition"
        if line.step is None or line.interval is None:
            verdict = "none" if line.step is None and line.share <= 1 - self.level else "inconclusive"
            reason += f" (some step does in {line.share:.0%} of resamplings)"
        estimate: dict[str, Any] = {"step": float(line.step or 0), "interval": line.interval, "level": self.level}
        return Transition(
            signal, verdict, reason, questions=self.question_set, **(estimate if verdict == "transition" else {})
        )

    def frame(self) -> pd.DataFrame:
        """A row a patched adapter: kind, row and column (steps), norm, counts, rates with intervals, and `sufficient`.

        EM is `sufficient` where its interval lies above the control's, at 90 % coherent or more.
        """
        import pandas as pd

        norm = dict(zip(self.steps.tolist(), self.norms.tolist(), strict=True))
        limit = rate_intervals(self._control_counts.em, self._control_counts.n, self.level)[1]
        rows = []
        for (kind, row, column), answers in self.answers.groupby(["kind", "row", "column"], sort=True):
            rates = rate_columns(ScoredResponses(answers, self.level))
            line = {"kind": kind, "row": row, "column": column, "norm": norm[column] if kind == GRID else np.nan}
            sufficient = bool(rates["em_low"] > limit and rates["coherent"] >= MIN_COHERENT)
            rows.append({**line, **rates, "sufficient": sufficient})
        return pd.DataFrame(rows)

    def baselines(self) -> dict[str, Rate]:
        """EM rates that the grid is compared with: `control` or `base`, and random adapters with the final norm."""
        kinds = set(self.answers["kind"])
        return {kind: self.rates(kind).em for kind in (CONTROL, BASE, *RANDOM_KINDS) if kind in kinds}

    def to_dict(self) -> dict[str, Any]:
        """Plain values: verdict, transitions, recovered shares, baselines and the rows of `frame()`."""
        shares = {} if self.recovered is None else dict(zip(self.names, self.recovered, strict=True))
        return {
            "components": self.components,
            "verdict": self.verdict,
            "sentence": self.sentence(),
            "question_set": self.question_set,
            "level": self.level,
            "steps": self.steps.tolist(),
            "norms": self.norms.tolist(),
            "transitions": [transition.to_dict() for transition in self.transitions()],
            "recovered": {name: {"share": s.share, "interval": list(s.interval)} for name, s in shares.items()},
            "baselines": {kind: rate.to_dict() for kind, rate in self.baselines().items()},
            "unscored": ScoredResponses(self.answers, self.level).unscored,
            "rows": self.frame().to_dict("records"),
        }

    def plot(self) -> go.Figure:
        """EM and coherent rates as heat maps with the sufficient cells; the last column, last row and diagonal."""
        from em_interp.figures.mechanism.interventions import plot_patching

        cells = self.frame().query("kind == @GRID")
        limit = self.baselines()[self.control].interval[1]
        return plot_patching(cells, self.names, self.transitions(), limit, self.verdict, self.level)

    def sentence(self) -> str:
        """The sufficient component in words, with the first sufficient steps and the baselines."""
        first, second = self.names
        more_than_half = "recovers more than half of the missing behaviour"
        words = {
            first: f"the final {first} alone is sufficient: patched into earlier steps it {more_than_half}, the final "
            f"{second} does not",
            second: f"the final {second} alone is sufficient: patched into earlier steps it {more_than_half}, the "
            f"final {first} does not",
            "either": f"the final {first} and the final {second} are each sufficient: patched into earlier steps "
            f"either {more_than_half}",
            "both": f"only the final {first} and {second} together are sufficient: patched into earlier steps neither "
            f"alone {more_than_half}",
            "none": f"there is no behaviour to recover: as trained no step shows EM above the {self.control}'s",
            "inconclusive": f"it is open whether the final {first}, the final {second} or only both are sufficient",
        }
        parts = [words[self.verdict], *self._shares_in_words()]
        lines = {
            f"with the final {second}": self.row,
            f"with the final {first}": self.column,
            "as trained": self.as_trained,
        }
        first_steps = ", ".join(f"{how} {self._when(line)}" for how, line in lines.items())
        parts.append(f"the behaviour is shown {first_steps}")
        for kind, rate in self.baselines().items():
            if kind in RANDOM_KINDS:
                low, high = rate.interval
                parts.append(f"{RANDOM_KINDS[kind]}: EM {rate.rate:.1%} ({low:.1%} to {high:.1%})")
        return "; ".join(parts)

    def _shares_in_words(self) -> list[str]:
        if self.recovered is None:
            return []
        shares = zip(self.names, self.recovered, strict=True)
        words = [f"the {name} {s.share:.0%} ({s.interval[0]:.0%} to {s.interval[1]:.0%})" for name, s in shares]
        return [f"recovered alone: {', '.join(words)}"]

    def _when(self, line: FirstSufficient) -> str:
        if line.step is None:
            return "at no tested step"
        if line.interval is None:
            return f"from step {line.step} (no interval: {line.share:.0%} of resamplings show it at some step)"
        return f"from step {line.step} ({interval_text(line.interval, self.level)})"

    def __repr__(self) -> str:
        steps = f"{len(self.steps)} steps {self.steps[0]} to {self.steps[-1]}"
        return f"PatchingGrid({self.components}, {steps}: {self.verdict})"

    def _picture(self) -> str:
        """EM by step: as trained, and with the last step's column or row component."""
        first, second = self.names
        rate = self._counts.rate
        lines = {"as trained": np.diag(rate), f"final {second}": rate[:, -1], f"final {first}": rate[-1]}
        return picture([Line(self.steps, line, name) for name, line in lines.items()], "EM rate")


@checked
def patch(
    model: TrajectoryModel | TrajectorySource,
    judge: Judge,
    control: TrajectoryModel | TrajectorySource | None = None,
    steps: int = 12,
    questions: Questions | None = None,
    sampling: SamplingParams | None = None,
    n_random: int = 8,
    components: Components = "direction_norm",
    level: float = LEVEL,
    storage: Storage | str | Path | None = None,
) -> PatchingGrid:
    """The behaviour of adapters made of one component of step i and another of step j, for `steps` × `steps` steps.

    `direction_norm`: ΔW_i · ‖ΔW_j‖/‖ΔW_i‖. ΔW is that of all sites together, with one (Frobenius) norm, so a scaled
    adapter keeps the shares of its sites. `A_B`: s·B_j·A_i, where nothing is rescaled: B starts at zero, so it carries
    nearly all of the norm. A and B of one run belong together across steps too, because neither gauge nor order of the
    rank's components changes during training. A cell is sufficient where the lower end of its EM rate lies above the
    upper end of the control's, at 90 % coherent or more.

    Args:
        model: the model of a run, or what `open_model` opens.
        judge: scores the answers.
        control: a run whose last step the cells are compared with, such as one on careful data; by default the base.
        steps: the number of tested steps, evenly over the run and up to its last.
        questions: what is asked; by default the run's questions outside the training domain (`main_questions`).
        sampling: how answers are sampled.
        n_random: random adapters with the final norm, and as many with the final A and random B.
        components: `direction_norm` or `A_B`.
        level: confidence level of the intervals.
        storage: where the answers and scores are kept.

    Returns:
        EM and coherent rates by pair of steps, with the cells that suffice.

    Raises:
        InputError: for a control of another base, fewer than three steps with ΔW > 0, a run that was asked no such
            questions, other components, and the A of steering vectors, which have none.
    """
    check_known("components", components, COMPONENTS)
    check_level(level)
    model = as_model(model)
    if components == "A_B" and model.trajectory.kind == "steering":
        raise InputError(f"{model.run.path} holds steering vectors, which have no A to patch; LoRA adapters are needed")
    questions = list(main_questions(model.run) if questions is None else questions)
    sampling = SamplingParams() if sampling is None else sampling
    tested, norms = grid_steps(model.trajectory, steps)
    adapters = [
        (model.trajectory, patched_adapters(components, tested, norms)),
        control_adapters(model, control),
        *random_patched_adapters(model.trajectory, n_random, sampling.seed),
    ]
    experiment = PatchingExperiment(model, adapters)
    answers = run_experiment(experiment, judge, questions, sampling, Storage.of(storage))
    sets = sorted({question["questions"] for question in questions})
    return PatchingGrid(components, tested, norms, answers, sets[0] if len(sets) == 1 else None, level, sampling.seed)
