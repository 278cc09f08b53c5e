"""Steering transfer: does a direction of one run have the same effect on another base as on its own?

The direction is the source adapter's mean change of the residual stream at half depth, mapped by the ridge map that is
fitted on the two bases. In the target it is

- *added* to the base's stream at half depth, at every token, with the length of the target's own mean change there;
- *ablated* from the adapted target's stream at all layers.

The effect is that on a margin that needs no judge and no sampling: the mean log-probability (nats a token) of
misaligned answers minus that of aligned ones. It is compared with the effects of the target's own direction (the most
that can be expected), of the whole adapter, and of random directions of the source, mapped by the same map and used in
the same way at the same length.

It shows that a direction found on one base moves another towards misaligned answers, or is part of what moved it. It
does not show that one direction is the whole mechanism: the adapter acts at some tokens more than at others, and a
constant vector has a fraction of its effect. The margin is not behaviour: it may change while the answers do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from em_interp.behaviour.sampling.chat import Tokens
from em_interp.behaviour.sampling.likelihood import token_log_probabilities
from em_interp.behaviour.sampling.memory import Batches, RowMemory
from em_interp.comparison.cross_base.activation_diff import MeasuredRun, same_depths
from em_interp.comparison.cross_base.alignment_map import DirectionMap, fit_map
from em_interp.comparison.cross_base.texts import SharedTexts
from em_interp.errors import InputError
from em_interp.mechanism.engines.interventions import AblateDirection, AddVector, Intervention
from em_interp.mechanism.model import ModelAtStep, TrajectoryModel
from em_interp.transition.family import empirical_p

N_RANDOM = 19  # mapped random directions: with none above, p is 0.05
MIN_LABELLED = 10  # answers of each label
RANDOM_SEED = 20250611
BATCH_SIZE = 64


@dataclass(frozen=True, eq=False)
class Margin:
    """Misaligned and aligned answers; a call gives the mean log-probability of the first minus that of the second."""

    misaligned: Tokens
    aligned: Tokens

    @classmethod
    def of(cls, model: TrajectoryModel, texts: SharedTexts) -> Margin:
        """The margin of these texts. Raises InputError where a label has fewer than ten answers."""
        check_labels(texts)
        labelled = [texts.labelled(label) for label in (True, False)]
        return cls(*(model.chats(questions, answers) for questions, answers in labelled))

    def __call__(self, model: ModelAtStep, interventions: Sequence[Intervention] = ()) -> float:
        """The margin in nats a token."""
        misaligned, aligned = (
            _log_probability(model, tokens, interventions) for tokens in (self.misaligned, self.aligned)
        )
        return misaligned - aligned


def check_labels(texts: SharedTexts) -> None:
    """Raise InputError where too few of the texts are known to be misaligned, or aligned."""
    counts = [len(texts.labelled(label)[0]) for label in (True, False)]
    if min(counts) < MIN_LABELLED:
        raise InputError(
            f"steering transfer needs {MIN_LABELLED} misaligned and {MIN_LABELLED} aligned answers; found {counts[0]} "
            f"and {counts[1]} among the texts (judge the runs first)"
        )


def _log_probability(model: ModelAtStep, tokens: Tokens, interventions: Sequence[Intervention]) -> float:
    """Mean over answers of the mean log-probability of their tokens, in nats."""
    import torch

    base = model.model.base.model
    cost = RowMemory(base).reading(tokens.ids.shape[1], _ending(tokens))

    def read(rows: Sequence[int]) -> Float[np.ndarray, " row"]:
        part = tokens.rows(rows)
        kept = _ending(part)
        ids = torch.where(part.answer, part.ids, -1)[:, -kept:]
        logits = model.run(part, (), interventions, logits_to_keep=kept + 1).logits[:, :-1]
        of_rows = token_log_probabilities(logits, ids).sum(dim=1) / part.answer.sum(dim=1)
        return np.asarray(of_rows.double().cpu().numpy())

    parts = Batches(base.device, BATCH_SIZE).run(range(len(tokens)), lambda _: cost, read)
    return float(np.concatenate([values for _, values in parts]).mean())


def _ending(tokens: Tokens) -> int:
    """How many of the last positions hold all tokens of the answers."""
    return tokens.ids.shape[1] - int(tokens.answer.any(dim=0).int().argmax())


def half_depth(source: MeasuredRun, target: MeasuredRun) -> tuple[int, int]:
    """Rows of the compared layers nearest half the source's depth at which both adapters change something."""
    changed = [
        rows
        for rows in same_depths(source, target)
        if source.diff.mean[0, rows[0]].any() and target.diff.mean[0, rows[1]].any()
    ]
    depth = [(source.diff.layers[row] + 1) / source.n_layers for row, _ in changed]
    return changed[int(np.argmin(np.abs(np.array(depth) - 0.5)))]


def transfer_rows(target: MeasuredRun, sources: Sequence[MeasuredRun], texts: SharedTexts) -> Iterator[dict[str, Any]]:
    """A row for each source and intervention: the effect of the transferred direction beside its comparisons."""
    model = target.source.open()
    margin, last = Margin.of(model, texts), int(model.trajectory.steps[-1])
    with model.disable_adapter() as base_model:
        base = margin(base_model)
    with model.at(last) as adapted:
        whole = margin(adapted) - base
    for source in sources:
        rows = half_depth(source, target)
        directions, own, layer = _directions(source, target, rows)
        keys = {"run": source.name, "other": target.name, "layer": int(source.diff.layers[rows[0]])}
        keys |= {"other_layer": layer, "adapter": whole}
        length = float(np.linalg.norm(own))
        with model.disable_adapter() as base_model:
            steered = {
                name: margin(base_model, [AddVector(_of_length(v, length), layer)]) - base
                for name, v in directions.items()
            }
        with model.at(last) as adapted:
            ablated = {
                name: margin(adapted, [AblateDirection(_of_length(v, 1.0))]) - base - whole
                for name, v in directions.items()
            }
        yield {**keys, "intervention": "steering", **_summary(steered)}
        yield {**keys, "intervention": "ablation", **_summary(ablated)}


def _directions(
    source: MeasuredRun, target: MeasuredRun, rows: tuple[int, int]
) -> tuple[dict[str, np.ndarray], Float[np.ndarray, " e"], int]:
    """The target's own direction, the transferred one and random ones by name; its own again, and its layer."""
    fitted = fit_map(source.diff.base[rows[0]], target.diff.base[rows[1]], "ridge")
    own, transferred = target.diff.mean[0, rows[1]], fitted.map(source.diff.mean[0, rows[0]])
    random = {str(number): vector for number, vector in enumerate(_random(fitted, source.name))}
    return {"own": own, "transferred": transferred, **random}, own, int(target.diff.layers[rows[1]])


def _summary(effects: dict[str, float]) -> dict[str, float]:
    """The transferred direction's effect, the target's own, the largest of the random ones, and a two-sided p-value."""
    random = np.abs([effect for name, effect in effects.items() if name not in ("own", "transferred")])
    return {
        "transferred": effects["transferred"],
        "own": effects["own"],
        "random_largest": float(random.max()),
        "p_random": empirical_p(random, abs(effects["transferred"])),
    }


def _random(fitted: DirectionMap, name: str) -> Iterator[Float[np.ndarray, " e"]]:
    rng = np.random.default_rng([RANDOM_SEED, *name.encode()])
    for _ in range(N_RANDOM):
        yield fitted.map(rng.standard_normal(len(fitted.left)))


def _of_length(vector: Float[np.ndarray, " e"], length: float) -> np.ndarray:
    return (vector * (length / np.linalg.norm(vector))).astype(np.float32)
