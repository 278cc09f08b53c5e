"""Attribution: does the adapter write the direction of misaligned answers or cause it in later layers, and since when?

At every step three vectors are compared with one reference direction, by cosine:

- the *write* of a site: what it adds to the residual stream of its layer, averaged over the answers' tokens. In Qwen
  and Llama that is B times the mean scalar, so its cosine with anything is ± that of B; in Gemma 3, where a norm comes
  between, it is the normed output with the adapter minus the same without. Sites that do not add to the stream
  (`q_proj`, `up_proj`, …) have none. A learned steering vector is its own write;
- the *effect* after a layer: the residual stream with the adapter minus the base's, averaged over the same tokens.
  After the first site's layer it is the write; later layers have transformed it;
- the *direction* in the model of that step itself.

The answers are the same at every step, so that only the adapter changes. The null comes from random adapters with the
real one's A and singular values that write in random directions, in the same model on the same answers.
Downstream a model turns any input towards its own large directions, so the band may be wider there than that of random
directions. (On the released medical run a re-analysis finds a cosine of 0.04 for B and up to 0.42 downstream.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int

from em_interp.behaviour.rates import cluster_bootstrap
from em_interp.behaviour.sampling.chat import Tokens
from em_interp.behaviour.sampling.generate import RowAdapters
from em_interp.errors import InputError
from em_interp.mechanism.answers import (
    BATCH,
    MIN_ANSWERS,
    AnswerSet,
    forward_passes,
    mean_over_answer,
    steps_to_read,
    tokenized_answers,
)
from em_interp.mechanism.directions import (
    DIRECTION_SEED,
    Direction,
    cosine,
    difference_of_means,
    mean_difference,
    stream_names,
)
from em_interp.mechanism.engines.base import ResidualWrite
from em_interp.mechanism.engines.lora_slots import steering_layer, steering_vector_of
from em_interp.mechanism.model import ModelAtStep, TrajectoryModel, as_model
from em_interp.mechanism.random_adapters import cosine_band, cosine_quantile, random_adapters
from em_interp.results import Line, Result, picture
from em_interp.trajectory.load import TrajectorySource
from em_interp.utils.checks import check_known, check_level, checked

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    import torch

N_RANDOM = 20  # random adapters
N_BOOTSTRAP = 300  # draws of questions
Table = Literal["cosines", "steps", "layers"]


@dataclass(frozen=True, eq=False)
class AnswerActivations:
    """What the model of one step computes over the answers' tokens."""

    stream: Float[np.ndarray, "layer d"]  # the residual stream, averaged over each answer's tokens, then over answers
    difference: Float[np.ndarray, "layer d"]  # the same over misaligned minus aligned answers
    writes: dict[str, Float[np.ndarray, " d"]]  # by site, averaged likewise


@dataclass(frozen=True, eq=False)
class NullBands:
    """Upper bounds of |cosine| with the direction for adapters that write in random directions."""

    writes: dict[str, float]  # by site
    effects: Float[np.ndarray, " layer"]


@dataclass(frozen=True, eq=False, repr=False)
class DirectionAttribution(Result):
    """Writes, effects and directions along a run, compared with a reference direction.

    Attributes:
        reference: the direction with which writes and effects are compared.
        steps: training steps of the adapter.
        writes: by site, the mean write to the residual stream at each step; zero where the adapter is zero.
        layer: by site, the layer after which its write is in the stream.
        effects: the adapter's effect on the stream after each layer, at each step.
        vectors: the mean difference after each layer in the model of each step.
        bands: the bands of |cosine| under the null.
        level: confidence level of the intervals and of the null's bands.
    """

    NEXT: ClassVar = (".plot()", ".plot('steps')", ".plot('layers')", ".frame()")

    reference: Direction
    steps: Int[np.ndarray, " step"]
    writes: dict[str, Float[np.ndarray, "step d"]]
    layer: dict[str, int]
    effects: Float[np.ndarray, "step layer d"]
    vectors: Float[np.ndarray, "step layer d"]
    bands: NullBands
    level: float

    def frame(self, table: Table = "cosines") -> pd.DataFrame:
        """The numbers as a tidy table.

        `cosines`: a row a step, layer and `what` (write, effect or direction), with the `site` of a write, `norm`,
        `cosine` to the reference after that layer with its interval (for a reference from other questions), and
        `band`, what |cosine| stays below under the null. `steps`: cosine between the directions of every two steps at
        each layer. `layers`: the reference (`Direction.frame`). What is undefined (at step 0 B is zero) is NaN.
        """
        tables = {"cosines": lambda: self._cosines.copy(), "steps": self._between_steps, "layers": self.reference.frame}
        check_known("table", table, tables)
        return tables[table]()

    @cached_property
    def _cosines(self) -> pd.DataFrame:
        import pandas as pd

        resampled, isotropic = self._resampled_reference(), cosine_quantile(self.effects.shape[2], self.level)
        tables = [
            self._compared(resampled, path, self.layer[site], "write", self.bands.writes[site], site)
            for site, path in self.writes.items()
        ]
        for layer, band in enumerate(self.bands.effects.tolist()):
            tables.append(self._compared(resampled, self.effects[:, layer], layer, "effect", band))
            tables.append(self._compared(resampled, self.vectors[:, layer], layer, "direction", isotropic))
        return pd.concat(tables, ignore_index=True)

    def _compared(
        self,
        resampled: Float[np.ndarray, "draw layer d"],
        path: Float[np.ndarray, "step d"],
        layer: int,
        what: str,
        band: float,
        site: str = "",
    ) -> pd.DataFrame:
        import pandas as pd

        cosines = cosine(path, self.reference.vectors[layer])
        low = high = np.full(len(cosines), np.nan)
        if what != "direction" and len(resampled):  # a direction and the reference would be resampled together
            low, high = fisher_interval(cosines, cosine(path[None], resampled[:, None, layer]), self.level)
        norm = np.linalg.norm(path, axis=1)
        columns = {"step": self.steps, "what": what, "layer": layer, "site": site, "norm": norm, "cosine": cosines}
        return pd.DataFrame({**columns, "cosine_low": low, "cosine_high": high, "band": band})

    def _resampled_reference(self) -> Float[np.ndarray, "draw layer d"]:
        """The reference from questions drawn with replacement; empty for one without its answers."""
        answers, means = self.reference.answers, self.reference.means
        if answers is None or means is None:
            return np.empty((0, *self.reference.vectors.shape))
        drawn = []
        for weight in cluster_bootstrap(answers.question, N_BOOTSTRAP, DIRECTION_SEED):
            misaligned, aligned = weight * answers.misaligned, weight * ~answers.misaligned
            if misaligned.any() and aligned.any():
                share = misaligned / misaligned.sum() - aligned / aligned.sum()
                drawn.append(np.tensordot(share, means, axes=1))
        return np.stack(drawn)

    def _between_steps(self) -> pd.DataFrame:
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
        """The cosines of writes and effects at the last step, with the null."""
        last = self._cosines[self._cosines["step"] == self.steps[-1]].dropna(subset="cosine")
        parts = [
            f"the write of {row.site} has cosine {_cosine(row)} with the direction after layer {row.layer}, "
            f"{_beside_band(row)}"
            for row in last[last["what"] == "write"].itertuples()
        ]
        effects = last[last["what"] == "effect"]
        if len(effects):
            parts.append(self._effect_sentence(effects))
        words = "; ".join(parts) or "the adapter writes nothing"
        return f"At step {self.steps[-1]} {words}. {self.reference.sentence()}"

    def _effect_sentence(self, effects: pd.DataFrame) -> str:
        """After how many layers the effect is outside that layer's band, for each band is of one layer alone."""
        beyond = effects["cosine"].abs() / effects["band"]
        row = next(effects.loc[[beyond.idxmax()]].itertuples())
        return (
            f"the effect is outside its own band after {(beyond > 1).sum()} of {len(effects)} layers (by chance "
            f"{(1 - self.level) * len(effects):.2g}), and largest relative to it after layer {row.layer}: "
            f"{_cosine(row)}, band ±{row.band:.2f}"
        )

    def plot(self, table: Table = "cosines") -> go.Figure:
        """Cosines of writes and effects by step with their bands; directions of every two steps; layers."""
        from em_interp.figures.mechanism import directions as draw

        about = self.reference.answers.sentence() if self.reference.answers is not None else ""
        if table == "layers":
            return self.reference.plot()
        rows = self.frame(table)
        return draw.plot_direction_steps(rows, about) if table == "steps" else draw.plot_writes(rows, self.level, about)

    def _picture(self) -> str:
        rows = self._cosines[self._cosines["what"] != "direction"]
        lines = [
            Line(part["step"].to_numpy(), part["cosine"].to_numpy(), f"{what}, layer {layer}")
            for (what, layer), part in rows.groupby(["what", "layer"], sort=False)
        ]
        return picture(lines[:6], "cosine")


def fisher_interval(
    cosines: Float[np.ndarray, " step"], resampled: Float[np.ndarray, "draw step"], level: float
) -> tuple[Float[np.ndarray, " step"], Float[np.ndarray, " step"]]:
    """An interval around each cosine on Fisher's scale, atanh, by the spread of the resampled ones.

    Not their quantiles: a resampled direction is noisier than the one it stands for, so its cosines are all smaller.
    """
    from scipy.special import ndtri

    most = 1 - 1e-12
    reach = ndtri((1 + level) / 2) * np.arctanh(np.clip(resampled, -most, most)).std(axis=0, ddof=1)
    centre = np.arctanh(np.clip(cosines, -most, most))
    return np.tanh(centre - reach), np.tanh(centre + reach)


def _beside_band(row: Any) -> str:
    where = "outside" if abs(row.cosine) > row.band else "within"
    return f"{where} the band of random adapters (±{row.band:.2f})"


def _cosine(row: Any) -> str:
    return f"{row.cosine:.2f} ({row.cosine_low:.2f} to {row.cosine_high:.2f})"


@checked
def attribute_direction(
    model: TrajectoryModel | TrajectorySource,
    answers: AnswerSet,
    steps: int | Sequence[int] | None = None,
    reference: Direction | None = None,
    n_random: int = N_RANDOM,
    level: float = 0.95,
    batch: int = BATCH,
) -> DirectionAttribution:
    """Writes, effects and directions at several steps, from one forward pass of the answers each.

    Args:
        model: the model of a run, or what `open_model` opens.
        answers: the answers that are read at every step.
        steps: saved steps; by default at most 41 of them.
        reference: the direction to compare with; by default the mean difference of these answers in the last step's
            model. It may be of other answers, another step, or another run on the same base.
        n_random: number of random adapters for the band.
        level: confidence level of the intervals and of the null's bands.
        batch: answers that are read at a time.

    Returns:
        Cosines with the reference by step and site, with the band of random adapters.

    Raises:
        InputError: where there are fewer than 10 misaligned or aligned answers, and for a step that was not saved.
    """
    check_level(level)
    answers.require(MIN_ANSWERS, "a mean-difference direction")
    if n_random < 2:
        raise InputError(f"n_random is the number of adapters for the band; expected at least 2, found {n_random}")
    model = as_model(model)
    tokens, steps = tokenized_answers(model, answers, batch), steps_to_read(model, steps)
    reference = reference or mean_difference(model, answers, batch=batch)
    with model.disable_adapter() as base:
        before = read_step(base, tokens, answers)
    reads = []
    for step in steps:
        with model.at(step) as adapted:
            reads.append(read_step(adapted, tokens, answers))
    return DirectionAttribution(
        reference=reference,
        steps=np.array(steps),
        writes={site: np.stack([read.writes[site] for read in reads]) for site in before.writes},
        layer={site: residual_write(model, site).layer for site in before.writes},
        effects=np.stack([read.stream - before.stream for read in reads]),
        vectors=np.stack([read.difference for read in reads]),
        bands=null_bands(model, tokens, answers, reference.vectors, n_random, level),
        level=level,
    )


def read_step(model: ModelAtStep, batches: Sequence[Tokens], answers: AnswerSet) -> AnswerActivations:
    """Residual streams and writes over the answers' tokens (`batches`), from one forward pass."""
    hook_points, streams = model.model.engine.hook_points, stream_names(model.model)
    sites = [site for site in hook_points.sites if hook_points.residual_write(site) is not None]
    names = [*streams, *(f"{kind}.{site}" for site in sites for kind in ("site_out", "scalar"))]
    means: list[np.ndarray] = []
    parts: dict[str, list[np.ndarray]] = {site: [] for site in sites}
    for tokens, activations in forward_passes(model, batches, names):
        means.append(np.stack([mean_over_answer(activations[name], tokens) for name in streams], axis=1))
        for site in sites:
            written = _write(model, site, activations[f"site_out.{site}"], activations[f"scalar.{site}"])
            parts[site].append(mean_over_answer(written, tokens))
    stream = np.concatenate(means)
    writes = {site: np.concatenate(of_site).mean(axis=0) for site, of_site in parts.items()}
    for site in model.adapters.A:
        if site not in hook_points.sites:  # of a learned steering vector
            writes[site] = steering_vector_of(model.adapters, site).double().cpu().numpy()
    return AnswerActivations(stream.mean(axis=0), difference_of_means(stream, answers.misaligned), writes)


def _write(model: ModelAtStep, site: str, out: torch.Tensor, scalar: torch.Tensor) -> torch.Tensor:
    """What the adapter adds to the residual stream at each token (row, position, d)."""
    import torch

    B, scale = model.adapters.B[site], model.scales[site]
    added = (scalar / scale @ B.transpose(1, 2)).to(out.dtype) if scale else out * 0  # B carries the scale already
    norm = residual_write(model.model, site).norm
    if norm is None:
        return added
    with torch.no_grad():
        return norm(out) - norm(out - added)


def residual_write(model: TrajectoryModel, site: str) -> ResidualWrite:
    """How the output of a site that writes to the residual stream is added to it."""
    if site not in model.engine.hook_points.sites:
        return ResidualWrite(steering_layer(site), None)
    written = model.engine.hook_points.residual_write(site)
    if written is None:
        raise InputError(f"{site} does not write to the residual stream; down_proj and o_proj do")
    return written


def null_bands(
    model: TrajectoryModel,
    batches: Sequence[Tokens],
    answers: AnswerSet,
    reference: Float[np.ndarray, "layer d"],
    n_random: int,
    level: float,
) -> NullBands:
    """Bands for the cosines of writes and effects with the reference, from random adapters of the last step's size.

    The band is what the next draw's |cosine| stays below with probability `level`. Where no norm comes between, the
    write of a random B is a random direction, and its band exact.
    """
    drawn = random_adapters(model.trajectory, range(n_random), keep_A=True)
    with model.disable_adapter() as base:
        before = read_step(base, batches, answers).stream
    writes: dict[str, list[np.ndarray]] = {}
    effects = []
    for draw in range(n_random):
        with model.with_adapter(RowAdapters.of(drawn, [draw], [1.0], model.device), "a random adapter") as adapted:
            read = read_step(adapted, batches, answers)
        effects.append(cosine(read.stream - before, reference))
        for site, written in read.writes.items():
            writes.setdefault(site, []).append(written)
    bands = {}
    for site, vectors in writes.items():
        layer, norm = residual_write(model, site)
        cosines = cosine(np.stack(vectors), reference[layer])
        bands[site] = cosine_band(cosines, level) if norm else cosine_quantile(reference.shape[1], level)
    return NullBands(bands, np.array([cosine_band(cosines, level) for cosines in np.transpose(effects)]))
