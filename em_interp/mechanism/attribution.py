"""What an adapter writes into the residual stream, and what comes of it further on, at one step.

- The *write* of a site is what it adds to the residual stream of its layer, averaged over the answers' tokens. In Qwen
  and Llama that is B times the mean scalar, so its cosine with anything is ± that of B; in Gemma 3, where a norm comes
  between, it is the normed output with the adapter minus the same without. Sites that do not add to the stream
  (`q_proj`, `up_proj`, …) have none. A learned steering vector is its own write.
- The *effect* after a layer is the residual stream with the adapter minus the base's, averaged over the same tokens.
  After the first site's layer it is the write; later layers have worked on it.

Chance is drawn: the same A and sizes with B turned at random, through the same model and answers. Downstream a model
turns whatever it is given towards its own large directions, so the band of chance there may be wider than that of
random directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, Int

from em_interp.behaviour.chat import Tokens
from em_interp.behaviour.generate import RowAdapters
from em_interp.errors import InputError
from em_interp.mechanism.answers import BATCH, LEAST, AnswerSet, chats_of, mean_over_answer, passes, steps_of
from em_interp.mechanism.directions import SEED, MeanDifference, cosine, difference, mean_difference, stream_names
from em_interp.mechanism.engines.base import Written
from em_interp.mechanism.engines.lora_slots import layer_of, steering_vector_of
from em_interp.mechanism.model import ModelAtStep, TrajectoryModel
from em_interp.results import Line, html_card, picture

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    import torch


@dataclass(frozen=True, eq=False)
class StepRead:
    """What answers show of the model at one step."""

    stream: Float[np.ndarray, "layer d"]  # the residual stream, averaged over each answer's tokens, then over answers
    difference: Float[np.ndarray, "layer d"]  # the same over misaligned minus aligned answers
    writes: dict[str, Float[np.ndarray, " d"]]  # by site, averaged likewise


@dataclass(frozen=True, eq=False)
class Chance:
    """What |cosine| with a direction stays below where B points anywhere."""

    writes: dict[str, float]  # by site
    effects: Float[np.ndarray, " layer"]


def read_step(model: ModelAtStep, chats: Sequence[Tokens], answers: AnswerSet) -> StepRead:
    """Read the answers, whose `chats` these are, through the model once."""
    layout, streams = model.model.engine.layout, stream_names(model.model)
    sites = [site for site in layout.sites if layout.written(site) is not None]
    names = [*streams, *(f"{kind}.{site}" for site in sites for kind in ("site_out", "scalar"))]
    means: list[np.ndarray] = []
    writes: dict[str, list[np.ndarray]] = {site: [] for site in sites}
    for tokens, seen in passes(model, chats, names):
        means.append(np.stack([mean_over_answer(seen[name], tokens) for name in streams], axis=1))
        for site in sites:
            written = _write(model, site, seen[f"site_out.{site}"], seen[f"scalar.{site}"])
            writes[site].append(mean_over_answer(written, tokens))
    stream = np.concatenate(means)
    mean_writes = {site: np.concatenate(parts).mean(axis=0) for site, parts in writes.items()}
    mean_writes |= {site: steering_vector_of(model.adapters, site).double().cpu().numpy() for site in _steered(model)}
    return StepRead(stream.mean(axis=0), difference(stream, answers.misaligned), mean_writes)


def _steered(model: ModelAtStep) -> list[str]:
    """Sites of learned steering vectors."""
    return [site for site in model.adapters.A if site not in model.model.engine.layout.sites]


def _write(model: ModelAtStep, site: str, out: torch.Tensor, scalar: torch.Tensor) -> torch.Tensor:
    """What the adapter adds to the residual stream at each token (row, position, d)."""
    import torch

    B, scale = model.adapters.B[site], model.scales[site]
    added = (scalar / scale @ B.transpose(1, 2)).to(out.dtype) if scale else out * 0  # B carries the scale already
    norm = written_at(model.model, site).norm
    if norm is None:
        return added
    with torch.no_grad():
        return norm(out) - norm(out - added)


def chance(
    model: TrajectoryModel,
    chats: Sequence[Tokens],
    answers: AnswerSet,
    wanted: Float[np.ndarray, "layer d"],
    draws: int,
    level: float,
) -> Chance:
    """Bands for the cosines of writes and effects with the directions `wanted`, from adapters of the last step's size.

    Drawn cosines are taken as normal, not about zero: a layer may answer to any push alike. The band is what the next
    draw's |cosine| stays below with probability `level`. Where no norm comes between, the write of a random B is a
    random direction, and its band exact.
    """
    import torch

    rng = torch.Generator().manual_seed(SEED)
    own = RowAdapters.of(model.trajectory, [int(model.trajectory.steps[-1])], [1.0], model.device)
    with model.disable_adapter() as base:
        before = read_step(base, chats, answers).stream
    writes: dict[str, list[np.ndarray]] = {}
    effects = []
    for _ in range(draws):
        turned = {site: _turned(B, rng) for site, B in own.B.items()}
        with model.with_adapter(RowAdapters(own.A, turned), "an adapter turned at random") as adapted:
            read = read_step(adapted, chats, answers)
        effects.append(cosine(read.stream - before, wanted))
        for site, written in read.writes.items():
            writes.setdefault(site, []).append(written)
    bands = {}
    for site, drawn in writes.items():
        layer, norm = written_at(model, site)
        seen = cosine(np.stack(drawn), wanted[layer])
        bands[site] = band_of(seen, level) if norm else cosine_quantile(wanted.shape[1], level)
    return Chance(bands, np.array([band_of(seen, level) for seen in np.transpose(effects)]))


def written_at(model: TrajectoryModel, site: str) -> Written:
    """Where the output of a site that writes reaches the residual stream."""
    if site not in model.engine.layout.sites:
        return Written(layer_of(site), None)
    written = model.engine.layout.written(site)
    if written is None:
        raise InputError(f"{site} does not write to the residual stream; down_proj and o_proj do")
    return written


def band_of(cosines: Float[np.ndarray, " draw"], level: float) -> float:
    """What |cosine| of one more draw stays below with probability `level`, by the folded normal; at most 1.

    The spread is widened for so few draws, as in Student's prediction interval.
    """
    from scipy.special import ndtri, stdtrit
    from scipy.stats import foldnorm

    n, tail = len(cosines), (1 + level) / 2
    spread = float(cosines.std(ddof=1) * np.sqrt(1 + 1 / n) * stdtrit(n - 1, tail) / ndtri(tail))
    return min(float(foldnorm.ppf(level, abs(float(cosines.mean())) / spread, scale=spread)), 1.0) if spread else 1.0


def _turned(B: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """A random matrix whose columns are as long as those of B."""
    import torch

    drawn = torch.randn(B.shape, generator=rng).to(B)
    return drawn * (B.norm(dim=1, keepdim=True) / drawn.norm(dim=1, keepdim=True))


def cosine_quantile(d: int, level: float = 0.95) -> float:
    """What |cos| of two random directions in d dimensions stays below with this probability; exact, about 2/√d."""
    from scipy.stats import beta

    return 1.0 if d == 1 else float(np.sqrt(beta.ppf(level, 0.5, (d - 1) / 2)))


# --------
# Does the adapter write the direction along which misaligned answers lie, or cause it further on, and from when?
# At every step three things are held against one reference direction: what the adapter writes, the effect of it
# after each layer (`em_interp.mechanism.writes`), and the mean difference in the model of that step itself. The
# answers are the same throughout, so that only the adapter changes. (On the released medical run a re-analysis finds
# a cosine of 0.04 for B and up to 0.42 downstream.)


DRAWS = 20  # random adapters
RESAMPLED = 300  # draws of questions
Table = Literal["cosines", "steps", "layers"]


@dataclass(frozen=True, eq=False, repr=False)
class DirectionPath:
    """Writes, effects and directions along a run, beside a reference direction."""

    reference: MeanDifference
    steps: Int[np.ndarray, " step"]
    writes: dict[str, Float[np.ndarray, "step d"]]  # of each site that writes; zero where the adapter is
    layer: dict[str, int]  # after which layer each write is there
    effects: Float[np.ndarray, "step layer d"]
    vectors: Float[np.ndarray, "step layer d"]  # the mean difference in the model of each step
    bands: Chance
    level: float

    def vector(self, layer: int, step: int | None = None) -> Float[np.ndarray, " d"]:
        """The direction after a layer, of the reference or in the model of a step."""
        if step is None:
            return self.reference.vector(layer)
        if step not in self.steps or not 0 <= layer < self.vectors.shape[1]:
            there = f"steps {', '.join(map(str, self.steps))} and layers 0 to {self.vectors.shape[1] - 1}"
            raise InputError(f"there is no direction of step {step} after layer {layer}; there are {there}")
        return self.vectors[int(np.flatnonzero(self.steps == step)[0]), layer]

    def frame(self, table: Table = "cosines") -> pd.DataFrame:
        """The numbers as a tidy table.

        `cosines`: a row a step, layer and `what` (write, effect or direction), with the `site` of a write, `norm`,
        `cosine` to the reference after that layer, its interval `low` and `high` for a reference from other questions,
        and `band`, what |cosine| stays below by chance. `steps`: cosine between the directions of every two steps at
        each layer. `layers`: the reference (`MeanDifference.frame`). What is undefined (at step 0 B is zero) is NaN.
        """
        tables = {"cosines": lambda: self._cosines.copy(), "steps": self._between, "layers": self.reference.frame}
        if table not in tables:
            raise InputError(f"there is no table {table!r}; there are {', '.join(tables)}")
        return tables[table]()

    @cached_property
    def _cosines(self) -> pd.DataFrame:
        import pandas as pd

        drawn, isotropic = self._drawn(), cosine_quantile(self.effects.shape[2], self.level)
        tables = [
            self._against(drawn, path, self.layer[site], "write", self.bands.writes[site], site)
            for site, path in self.writes.items()
        ]
        for layer, band in enumerate(self.bands.effects.tolist()):
            tables.append(self._against(drawn, self.effects[:, layer], layer, "effect", band))
            tables.append(self._against(drawn, self.vectors[:, layer], layer, "direction", isotropic))
        return pd.concat(tables, ignore_index=True)

    def _against(
        self,
        drawn: Float[np.ndarray, "draw layer d"],
        path: Float[np.ndarray, "step d"],
        layer: int,
        what: str,
        band: float,
        site: str = "",
    ) -> pd.DataFrame:
        import pandas as pd

        seen = cosine(path, self.reference.vectors[layer])
        low, high = _interval(seen, cosine(path[None], drawn[:, None, layer]), self.level)
        if what == "direction":  # of the reference's own answers: the two would be drawn again together
            low = high = np.full(len(seen), np.nan)
        norm = np.linalg.norm(path, axis=1)
        columns = {"step": self.steps, "what": what, "layer": layer, "site": site, "norm": norm, "cosine": seen}
        return pd.DataFrame(columns | {"low": low, "high": high, "band": band})

    def _drawn(self) -> Float[np.ndarray, "draw layer d"]:
        """The reference from questions drawn again with replacement."""
        answers, rng = self.reference.answers, np.random.default_rng(SEED)
        question, mis = answers.question, answers.misaligned
        count, drawn = int(question.max()) + 1, []
        for _ in range(RESAMPLED):
            weight = np.bincount(rng.integers(count, size=count), minlength=count)[question]
            ones, others = weight * mis, weight * ~mis
            if ones.any() and others.any():
                share = ones / ones.sum() - others / others.sum()
                drawn.append(np.tensordot(share, self.reference.means, axes=1))
        return np.stack(drawn)

    def _between(self) -> pd.DataFrame:
        import pandas as pd

        tables = []
        for layer in range(self.vectors.shape[1]):
            square = cosine(self.vectors[:, None, layer], self.vectors[None, :, layer])
            i, j = np.indices(square.shape).reshape(2, -1)
            pair = {"layer": layer, "step": self.steps[i], "other_step": self.steps[j], "cosine": square.ravel()}
            tables.append(pd.DataFrame(pair))
        return pd.concat(tables, ignore_index=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the reference and the rows of `frame("cosines")`."""
        rows = self.frame().to_dict("records")
        return {"reference": self.reference.to_dict(), "level": self.level, "rows": rows, "sentence": self.sentence()}

    def sentence(self) -> str:
        """What the adapter writes and causes at the last step, beside chance."""
        last = self._cosines[self._cosines["step"] == self.steps[-1]].dropna(subset="cosine")
        parts = [
            f"what {row.site} writes has cosine {_beside(row)} with the direction after layer {row.layer}"
            for row in last[last["what"] == "write"].itertuples()
        ]
        effects = last[last["what"] == "effect"]
        if len(effects):
            row = next(effects.loc[[(effects["cosine"].abs() / effects["band"]).idxmax()]].itertuples())
            parts.append(f"its effect stands out most after layer {row.layer}, with {_beside(row)}")
        said = "; ".join(parts) or "the adapter writes nothing"
        return f"At step {self.steps[-1]} {said}. {self.reference.sentence()}"

    def plot(self, table: Table = "cosines") -> go.Figure:
        """Cosines of writes and effects by step with their bands; directions of steps against each other; layers."""
        from em_interp.figures import internals as draw

        about = self.reference.answers.sentence()
        if table == "layers":
            return self.reference.plot()
        rows = self.frame(table)
        return draw.plot_direction_steps(rows, about) if table == "steps" else draw.plot_writes(rows, self.level, about)

    def __repr__(self) -> str:
        return f"DirectionPath({self.sentence()})"

    def _repr_html_(self) -> str:
        rows = self._cosines[self._cosines["what"] != "direction"]
        lines = [
            Line(part["step"].to_numpy(), part["cosine"].to_numpy(), f"{what}, layer {layer}")
            for (what, layer), part in rows.groupby(["what", "layer"], sort=False)
        ]
        calls = (".plot()", ".plot('steps')", ".plot('layers')", ".frame()", ".vector(layer)")
        return html_card([self.sentence()], picture(lines[:6], "cosine to the direction"), calls)


def _interval(
    seen: Float[np.ndarray, " step"], drawn: Float[np.ndarray, "draw step"], level: float
) -> tuple[Float[np.ndarray, " step"], Float[np.ndarray, " step"]]:
    """Around the cosine on Fisher's scale, atanh, by the spread of the drawn ones.

    Not their quantiles: a drawn direction is noisier than the one it stands for, so its cosines are all smaller.
    """
    from scipy.special import ndtri

    most = 1 - 1e-12
    reach = ndtri((1 + level) / 2) * np.arctanh(np.clip(drawn, -most, most)).std(axis=0, ddof=1)
    centre = np.arctanh(np.clip(seen, -most, most))
    return np.tanh(centre - reach), np.tanh(centre + reach)


def _beside(row: Any) -> str:
    word = "beyond" if abs(row.cosine) > row.band else "within"
    return f"{row.cosine:.2f} ({row.low:.2f} to {row.high:.2f}), {word} the band of chance (±{row.band:.2f})"


def follow_direction(
    model: TrajectoryModel,
    answers: AnswerSet,
    steps: Sequence[int] | None = None,
    reference: MeanDifference | None = None,
    draws: int = DRAWS,
    level: float = 0.95,
    batch: int = BATCH,
) -> DirectionPath:
    """Writes, effects and directions at these steps (by default at most 41 of the saved), one pass of the answers each.

    `reference` is by default the mean difference of these answers in the last step's model; it may be of other answers,
    another step, or another run on the same base. `draws` random adapters make the band. Raises InputError where there
    are fewer than 10 misaligned or aligned answers, and for a step that was not saved.
    """
    answers.need(LEAST, "a mean-difference direction")
    if draws < 2:
        raise InputError(f"draws are the random adapters that make the band; expected at least 2, found {draws}")
    chats, steps = chats_of(model, answers, batch), steps_of(model, steps)
    reference = reference or mean_difference(model, answers, batch=batch)
    with model.disable_adapter() as base:
        before = read_step(base, chats, answers)
    reads = []
    for step in steps:
        with model.at(step) as adapted:
            reads.append(read_step(adapted, chats, answers))
    return DirectionPath(
        reference=reference,
        steps=np.array(steps),
        writes={site: np.stack([read.writes[site] for read in reads]) for site in before.writes},
        layer={site: written_at(model, site).layer for site in before.writes},
        effects=np.stack([read.stream - before.stream for read in reads]),
        vectors=np.stack([read.difference for read in reads]),
        bands=chance(model, chats, answers, reference.vectors, draws, level),
        level=level,
    )
