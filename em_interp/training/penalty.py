"""A penalty on leaving the base on other data: the KL divergence between the two models' next-token distributions.

The loss of a step becomes loss + weight · KL, with KL = mean over answer tokens of Σ_v p(v) log(p(v) / q(v)), p the
reference (the base) and q the model that is trained. The mean is over all answer tokens of the step's rows of the other
data, however they are spread over micro-batches and processes. How the narrow solution is obtained in 2602.07852.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int

from em_interp.training.tokens import IGNORED

if TYPE_CHECKING:
    from em_interp.training.learner import Learner

Batch = dict[str, torch.Tensor]


def reference_logits(learner: Learner, batch: Batch) -> Float[torch.Tensor, "row token vocabulary"]:
    """Logits of the model as it was before training.

    To be called before the step's own forward passes: switching an adapter off and on touches its parameters.
    """
    with torch.no_grad(), learner.reference() as model:
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def penalty(
    model: Any, batch: Batch, reference: Float[torch.Tensor, "row token vocabulary"]
) -> Float[torch.Tensor, ""]:
    """This batch's part of the mean divergence: its sum over answer tokens, by the step's `tokens`."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return divergence(reference, logits, batch["labels"]) / batch["tokens"]


def divergence(
    reference: Float[torch.Tensor, "row token vocabulary"],
    logits: Float[torch.Tensor, "row token vocabulary"],
    labels: Int[torch.Tensor, "row token"],
) -> Float[torch.Tensor, ""]:
    """KL(reference ‖ model), summed over the positions whose next token has a label."""
    seen = labels[:, 1:] != IGNORED
    before, after = (each[:, :-1][seen].float().log_softmax(-1) for each in (reference, logits))
    return (before.exp() * (before - after)).sum()
