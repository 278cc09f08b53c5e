"""The plan of a run, made before it begins: at every step its rows of the dataset and its learning rate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from em_interp.config.run_config import PhaseConfig, RunConfig
from em_interp.errors import InputError

Split = tuple[Int[np.ndarray, " kept"], Int[np.ndarray, " held_out"]]  # row numbers
SPLIT_STREAM, DATA_STREAM, KL_STREAM = 0, 1, 2  # random streams of a run's seed


@dataclass(frozen=True)
class Phase:
    """Consecutive steps on one dataset, `first` to `last`, both included."""

    dataset: str
    first: int
    last: int
    restart: bool


@dataclass(frozen=True)
class KLRows:
    """The dataset rows on which the KL regularizer is computed, and how often."""

    dataset: str
    every: int
    rows: Int[np.ndarray, "step batch"]

    def at(self, step: int) -> list[int]:
        """The rows of `step`; none at a step without the regularizer."""
        return [] if step % self.every else self.rows[step - 1].tolist()


@dataclass(frozen=True)
class Plan:
    """Every step of a run. Step t (1, 2, …) is at index t - 1 of `rates` and `rows`."""

    phases: tuple[Phase, ...]
    rates: Float[np.ndarray, " step"]  # learning rate
    rows: Int[np.ndarray, "step batch"]  # row numbers within the step's dataset
    held_out: dict[str, list[int]]  # row numbers of each dataset that no step trains on
    kl: KLRows | None = None

    @property
    def steps(self) -> int:
        """The number of optimizer steps, and so the last step."""
        return len(self.rates)

    @property
    def restarts(self) -> frozenset[int]:
        """The steps that begin with a fresh optimizer."""
        return frozenset(phase.first for phase in self.phases if phase.restart)

    def dataset(self, step: int) -> str:
        """The dataset that `step` trains on."""
        return next(phase.dataset for phase in self.phases if phase.first <= step <= phase.last)

    def rows_of(self, dataset: str) -> list[int]:
        """Row numbers of `dataset` that any step uses, increasing."""
        used = {row for p in self.phases if p.dataset == dataset for row in self.rows[p.first - 1 : p.last].ravel()}
        if self.kl and self.kl.dataset == dataset:
            used |= {row for step in range(1, self.steps + 1) for row in self.kl.at(step)}
        return sorted(map(int, used))


def make_plan(config: RunConfig, sizes: Mapping[str, int]) -> Plan:
    """The plan of `config`, given the number of rows of each of its datasets.

    Each dataset is one endless stream of shuffled passes over its rows. A phase continues the stream where the last
    phase on that dataset ended, so a restart alone changes nothing about the data. Datasets of equal size are split
    and shuffled alike, so a run and its control train on matching rows. Every step has a full batch; an epoch is
    rounded up to whole steps.

    Raises:
        InputError: where no dataset is named, or one has no row left to train on.
    """
    if not config.data:
        raise InputError("data names no dataset to train on; expected a list such as [{dataset: chats.jsonl}]")
    batch = config.training.batch_size * config.training.gradient_accumulation_steps
    splits = {name: split_rows(size, config.training.held_out, config.seed) for name, size in sizes.items()}
    for name, (kept, held_out) in splits.items():
        if not len(kept):
            raise InputError(f"dataset {name} leaves no row to train on: {len(held_out)} in all, all held out")
    streams = {name: _stream(kept, config.seed) for name, (kept, _) in splits.items()}
    phases = tuple(_phases(config.data, {name: len(kept) for name, (kept, _) in splits.items()}, batch))
    rows = [list(itertools.islice(streams[p.dataset], (p.last - p.first + 1) * batch)) for p in phases]
    return Plan(
        phases=phases,
        rates=_rates(config, phases),
        rows=np.array(list(itertools.chain.from_iterable(rows))).reshape(-1, batch),
        held_out={name: sorted(held_out.tolist()) for name, (_, held_out) in splits.items()},
        kl=_kl_rows(config, splits, phases[-1].last, batch),
    )


def _kl_rows(config: RunConfig, splits: Mapping[str, Split], steps: int, batch: int) -> KLRows | None:
    """As many rows at each step as the step trains on, in an order of their own."""
    if config.kl is None:
        return None
    stream = _stream(splits[config.kl.dataset][0], config.seed, KL_STREAM)
    rows = np.array(list(itertools.islice(stream, steps * batch))).reshape(steps, batch)
    return KLRows(config.kl.dataset, config.kl.every, rows)


def split_rows(count: int, share: float, seed: int) -> Split:
    """Row numbers to train on and the `share` of them held out, drawn with `seed`."""
    order = np.random.default_rng([seed, SPLIT_STREAM]).permutation(count)
    cut = round(share * count)
    return order[cut:], order[:cut]


def _stream(rows: Int[np.ndarray, " row"], seed: int, stream: int = DATA_STREAM) -> Iterator[int]:
    generator = np.random.default_rng([seed, stream])
    while True:
        yield from generator.permutation(rows).tolist()


def _phases(phases: tuple[PhaseConfig, ...], rows: Mapping[str, int], batch: int) -> Iterator[Phase]:
    last = 0
    for phase in phases:
        epochs = 1.0 if phase.epochs is None else phase.epochs
        steps = phase.steps or math.ceil(epochs * rows[phase.dataset] / batch)
        yield Phase(phase.dataset, last + 1, last + steps, phase.restart)
        last += steps


def _rates(config: RunConfig, phases: tuple[Phase, ...]) -> Float[np.ndarray, " step"]:
    """The learning rate of each step: one schedule from each restart to the step before the next."""
    starts = sorted({1, *(phase.first for phase in phases if phase.restart)})
    ends = [*(start - 1 for start in starts[1:]), phases[-1].last]
    training = config.training
    factors = [
        schedule_factors(training.lr_scheduler_type, end - start + 1, training.warmup_steps)
        for start, end in zip(starts, ends, strict=True)
    ]
    return training.learning_rate * np.concatenate(factors)


def schedule_factors(kind: str, steps: int, warmup: int) -> Float[np.ndarray, " step"]:
    """The learning rate of each of `steps` steps as a fraction of its peak.

    The same numbers as transformers' schedulers of the name `kind` (linear, cosine or constant_with_warmup): the first
    step of a warm-up has rate 0, and the decay would reach 0 one step after the last.
    """
    step = np.arange(steps)
    rise = step / max(1, warmup)
    progress = (step - warmup) / max(1, steps - warmup)
    fall = {
        "linear": (steps - step) / max(1, steps - warmup),
        "cosine": 0.5 * (1 + np.cos(np.pi * progress)),
        "constant_with_warmup": np.ones(steps),
    }[kind]
    return np.where(step < warmup, rise, np.maximum(fall, 0.0))
