"""The micro-batches of a plan, in its order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import Dataset

from em_interp.training.plan import Plan
from em_interp.training.processes import Processes
from em_interp.training.tokens import IGNORED, Example

Examples = Mapping[str, Mapping[int, Example]]  # dataset → row → its tokens


class Batches(Dataset):
    """The micro-batches, of `size` rows each, of the plan's steps after `done`; this process's share of them."""

    def __init__(self, plan: Plan, done: int, size: int, examples: Examples, processes: Processes) -> None:
        self.plan, self.done, self.size, self.examples = plan, done, size, examples
        self.per_step = plan.rows.shape[1] // size // processes.count
        self.first_part = self.per_step * processes.rank

    def __len__(self) -> int:
        return (self.plan.steps - self.done) * self.per_step

    def __getitem__(self, index: int) -> dict[str, Any]:
        step, part = self.done + index // self.per_step + 1, self.first_part + index % self.per_step
        rows = self.plan.rows[step - 1, part * self.size : (part + 1) * self.size]
        tokens = self.examples[self.plan.dataset(step)]
        batch = collate([tokens[row] for row in rows.tolist()])
        other = self._other(step, part)
        return {**batch, "other": other} if other else batch

    def _other(self, step: int, part: int) -> dict[str, torch.Tensor]:
        """The part's rows of other data, and how many answer tokens the step has of it; nothing without a penalty."""
        rows = self.plan.other.at(step) if self.plan.other else []
        if not self.plan.other or not rows:
            return {}
        examples = [self.examples[self.plan.other.dataset][row] for row in rows]
        tokens = sum(label != IGNORED for example in examples for label in example.labels[1:])
        return collate(examples[part * self.size : (part + 1) * self.size]) | {"tokens": torch.tensor(tokens)}


def collate(examples: list[Example]) -> dict[str, torch.Tensor]:
    """A batch of token ids, labels and attention mask, each (row, token), as long as its longest row.

    Rows are padded on the right with token 0, whichever that is: nothing attends to it and nothing is learned from it.
    """
    longest = max(len(example.ids) for example in examples)
    gaps = [longest - len(example.ids) for example in examples]
    return {
        "input_ids": torch.tensor([e.ids + [0] * gap for e, gap in zip(examples, gaps, strict=True)]),
        "labels": torch.tensor([e.labels + [IGNORED] * gap for e, gap in zip(examples, gaps, strict=True)]),
        "attention_mask": torch.tensor([[1] * (longest - gap) + [0] * gap for gap in gaps]),
    }
