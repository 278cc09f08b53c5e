"""Using a carried direction: does it do in the target what it did where it came from?

The direction is the source adapter's mean change of the residual stream at half depth, carried by the ridge map that is
fitted on the two bases. In the target it is

- *added* to the base's stream at half depth, at every token, with the length of the target's own mean change there;
- *projected out* of the adapted target's stream at all layers.

The effect is that on a margin that needs no judge and no sampling: the mean log-probability (nats a token) of
misaligned answers less that of aligned ones. Beside it stand the target's own direction (what could be had at best),
the whole adapter's effect, and random directions of the source carried by the same map, used alike at the same length.

It can show that a direction found in one family moves another towards misaligned answers, or carries part of what moved
it. It cannot show that one direction is all there is: the adapter acts at some tokens more than at others, and a
constant vector has a fraction of its effect. A margin is not behaviour: answers may not change while it moves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from em_interp.behaviour.chat import Tokens
from em_interp.comparison.cross_base.activation_diff import Member, same_depths
from em_interp.comparison.cross_base.alignment_map import DirectionMap, fit_map
from em_interp.comparison.cross_base.texts import SharedTexts
from em_interp.errors import InputError
from em_interp.mechanism.engines.interventions import AblateDirection, AddVector, Intervention
from em_interp.mechanism.model import ModelAtStep, TrajectoryModel

RANDOM = 19  # carried random directions: with none above, p is 0.05
LEAST = 10  # answers of each label
SEED = 20250611
BATCH = 64


@dataclass(frozen=True, eq=False)
class Margin:
    """Misaligned and aligned answers; a call gives the mean log-probability of the first less that of the second."""

    misaligned: Tokens
    aligned: Tokens

    @classmethod
    def of(cls, model: TrajectoryModel, texts: SharedTexts) -> Margin:
        """Raises InputError where there are fewer than ten answers of either label."""
        check_labels(texts)
        labelled = [texts.labelled(label) for label in (True, False)]
        return cls(*(model.chats(questions, answers) for questions, answers in labelled))

    def __call__(self, model: ModelAtStep, interventions: Sequence[Intervention] = ()) -> float:
        """In nats a token."""
        return _log_probability(model, self.misaligned, interventions) - _log_probability(
            model, self.aligned, interventions
        )


def check_labels(texts: SharedTexts) -> None:
    """Raise InputError where too few of the texts are known to be misaligned, or aligned."""
    counts = [len(texts.labelled(label)[0]) for label in (True, False)]
    if min(counts) < LEAST:
        raise InputError(
            f"{LEAST} misaligned and {LEAST} aligned answers are needed to use a direction; found {counts[0]} and "
            f"{counts[1]} among the texts (judge the runs first)"
        )


def _log_probability(model: ModelAtStep, tokens: Tokens, interventions: Sequence[Intervention]) -> float:
    """Mean over answers of the mean log-probability of their tokens, in nats."""
    import torch

    means = []
    for batch in tokens.batches(BATCH):
        with torch.no_grad():
            logits = model.run(batch, (), interventions).logits[:, :-1].float()
            chosen = torch.log_softmax(logits, dim=-1).gather(2, batch.ids[:, 1:, None])[..., 0]
            answer = batch.answer[:, 1:].float()
            means.append((chosen * answer).sum(dim=1) / answer.sum(dim=1))
    return float(torch.cat(means).mean())


def half_depth(source: Member, target: Member) -> tuple[int, int]:
    """Rows of the looked-at layers nearest half the source's depth at which both adapters change something."""
    there = [
        rows
        for rows in same_depths(source, target)
        if source.changes.mean[0, rows[0]].any() and target.changes.mean[0, rows[1]].any()
    ]
    depth = [(source.changes.layers[mine] + 1) / source.layers for mine, _ in there]
    return there[int(np.argmin(np.abs(np.array(depth) - 0.5)))]


def transfer_rows(target: Member, sources: Sequence[Member], texts: SharedTexts) -> Iterator[dict[str, Any]]:
    """A row for each source and use: the effect of the carried direction, beside what it is to be held against."""
    model = target.opening.open()
    margin, last = Margin.of(model, texts), int(model.trajectory.steps[-1])
    with model.disable_adapter() as disable_adapter:
        base = margin(disable_adapter)
    with model.at(last) as adapted:
        whole = margin(adapted) - base
    for source in sources:
        rows = half_depth(source, target)
        fitted = fit_map(source.changes.base[rows[0]], target.changes.base[rows[1]], "ridge")
        own, layer = target.changes.mean[0, rows[1]], int(target.changes.layers[rows[1]])
        directions = {"own": own, "carried": fitted.carry(source.changes.mean[0, rows[0]]).direction}
        directions |= {str(k): v for k, v in enumerate(_random(fitted, source.name))}
        who = {"run": source.name, "other": target.name, "layer": int(source.changes.layers[rows[0]])}
        held = {**who, "other_layer": layer, "adapter": whole}
        with model.disable_adapter() as disable_adapter:
            length = float(np.linalg.norm(own))
            added = {
                k: margin(disable_adapter, [AddVector(_of_length(v, length), layer)]) - base
                for k, v in directions.items()
            }
        with model.at(last) as adapted:
            out = {
                k: margin(adapted, [AblateDirection(_of_length(v, 1.0))]) - base - whole for k, v in directions.items()
            }
        yield {**held, "use": "steering", **_summary(added)}
        yield {**held, "use": "ablation", **_summary(out)}


def _summary(effects: dict[str, float]) -> dict[str, float]:
    """The carried direction's effect, the target's own, the largest of the random ones, and a two-sided p-value."""
    random = np.abs([effect for name, effect in effects.items() if name not in ("own", "carried")])
    reached = int((random >= abs(effects["carried"])).sum())
    return {
        "carried": effects["carried"],
        "own": effects["own"],
        "random_largest": float(random.max()),
        "p_random": (1 + reached) / (1 + len(random)),
    }


def _random(fitted: DirectionMap, name: str) -> Iterator[Float[np.ndarray, " e"]]:
    rng = np.random.default_rng([SEED, *name.encode()])
    for _ in range(RANDOM):
        yield fitted.carry(rng.standard_normal(len(fitted.into))).direction


def _of_length(vector: Float[np.ndarray, " e"], length: float) -> np.ndarray:
    return (vector * (length / np.linalg.norm(vector))).astype(np.float32)
