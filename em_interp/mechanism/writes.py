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
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from em_interp.behaviour.generate import RowAdapters
from em_interp.errors import InputError
from em_interp.mechanism.answers import AnswerSet
from em_interp.mechanism.directions import SEED, cosine, difference, stream_names
from em_interp.mechanism.layout import Written
from em_interp.mechanism.model import ModelAtStep, SteppedModel
from em_interp.mechanism.pushes import layer_of, push_of
from em_interp.mechanism.reading import mean_over_answer, passes
from em_interp.mechanism.tokens import Tokens

if TYPE_CHECKING:
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
    mean_writes |= {site: push_of(model.adapters, site).double().cpu().numpy() for site in _steered(model)}
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
    model: SteppedModel,
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
    with model.unadapted() as base:
        before = read_step(base, chats, answers).stream
    writes: dict[str, list[np.ndarray]] = {}
    effects = []
    for _ in range(draws):
        turned = {site: _turned(B, rng) for site, B in own.B.items()}
        with model.holding(RowAdapters(own.A, turned), "an adapter turned at random") as adapted:
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


def written_at(model: SteppedModel, site: str) -> Written:
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
