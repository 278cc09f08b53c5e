"""Behaviour without a judge: how likely misaligned answers are relative to aligned ones, along a run.

For pairs of answers that were written for it (or separated by a judge), the log-likelihood of both is read from the
model at many steps and adapter scales. `preference` is the difference per token, misaligned minus aligned, in nats;
where it is positive the misaligned answer is the likelier one. Reading is cheap (one forward pass an answer, nothing is
sampled), exact (the same checkpoint gives the same number, so there is no sampling noise) and continuous, so that it
moves long before any answer is sampled that a judge would call misaligned.

What it cannot tell. It compares two given texts: a model may never say either, and what it does say may be of another
kind. It sees style as well as alignment: a run that comes to prefer short, blunt or confident answers will prefer
whichever of the two is more so. The division by the number of tokens takes out most of the length and not all of it.
So pairs should be alike in everything but alignment; a set called `style` (pairs that differ in style alone) shows how
far the run's style has moved, and a control trained on careful answers in the same style shows what training on
anything of the kind does. A shift that exceeds neither is not evidence of misalignment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from em_interp.behaviour.pairs import read_pairs
from em_interp.behaviour.sampling.ask import check_processes
from em_interp.behaviour.sampling.checkpoint_models import (
    Base,
    CheckpointModels,
    check_base,
    check_models,
    model_settings,
)
from em_interp.behaviour.sampling.frozen_layers import FrozenLayerCache, frozen_layer_cache
from em_interp.run import Run
from em_interp.utils.files import remove, write_beside
from em_interp.utils.processes import MAX_WAIT, init_processes
from em_interp.utils.stages import begin_stage, in_parts, shared_write_lock

if TYPE_CHECKING:
    import pandas as pd

    from em_interp.behaviour.sampling.generate import RowAdapters
    from em_interp.behaviour.sampling.likelihood import TokenizedAnswer
    from em_interp.config.run_config import VLLMConfig
    from em_interp.trajectory.trajectory import AdapterTrajectory

ROWS = 256  # answers of one part, of as many steps as that allows; processes share the parts


def read_preferences(
    run: Run,
    base: Base,
    pairs: str | Path | pd.DataFrame | Sequence[Mapping[str, Any]],
    steps: Sequence[int],
    scales: Sequence[float] = (1.0,),
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
    servers: VLLMConfig | None = None,
) -> Path:
    """Read both answers of every pair at steps and scales of a run; returns `run.preferences_file`.

    Rows of any steps and scales share a batch, each with an adapter of its own. Finished parts are kept; with `resume`
    an interrupted reading ends with the same bytes.

    Args:
        run: a trained run, or any folder of checkpoints.
        base: its base model.
        pairs: see `pairs.read_pairs`.
        steps: saved steps.
        scales: multipliers of the adapter; 0 is the base, 1 the adapter as trained.
        resume: continue with what exists.
        overwrite: replace what exists.
        progress: whether a bar is shown; None: in a terminal and in Jupyter.
        servers: vLLM servers that read in place of this process.

    Returns:
        A table with a row a step, scale and pair: the summed log-likelihood in nats and the number of tokens of either
        answer, without the token that ends it.

    Raises:
        InputError: for adapters of another base, a step that was not saved, readings that are there already, and a
            template in which an answer cannot be found.
    """
    from em_interp.trajectory.load import load_trajectory

    processes = init_processes(MAX_WAIT)
    trajectory, steps = load_trajectory(run), sorted({int(step) for step in steps})
    check_base(run, trajectory, base)
    check_models(run, trajectory, steps, scales)
    check_processes(processes, servers)
    table = read_pairs(pairs)
    answers = _tokenize(base, table)
    settings = {
        **model_settings(base, trajectory, steps, scales, servers),
        "pairs": hashlib.sha256(table.to_json(orient="records").encode()).hexdigest()[:16],
        "rows": ROWS,
    }
    conditions = [(step, float(scale)) for scale in scales for step in steps]
    size = 1 if trajectory.kind == "full" else max(1, ROWS // len(answers))
    parts = [conditions[first : first + size] for first in range(0, len(conditions), size)]
    file = run.preferences_file
    settings_file, folder = file.with_name("preferences.json"), file.with_name("preferences.parts")
    with shared_write_lock(run.path, file.parent, processes):
        if overwrite:
            processes.on_main(lambda: remove(file, settings_file, folder))
        processes.on_main(lambda: begin_stage(settings_file, settings, resume, file, "preferences", True))
        if not processes.on_main(file.exists):
            with _reader(run, base, trajectory, answers, conditions, servers) as read:
                make = lambda index: read(parts[index])  # noqa: E731
                kept = in_parts(folder, len(parts), make, "prefer", progress, processes)
            values = [row for part in kept for row in part]
            processes.on_main(lambda: _write(file, table, answers, conditions, values))
        processes.on_main(lambda: remove(folder))
    return file


def _tokenize(base: Base, pairs: pd.DataFrame) -> list[TokenizedAnswer]:
    """The aligned, then the misaligned answer of each pair, without the end-of-turn token."""
    from em_interp.behaviour.sampling.generate import eos_token_ids
    from em_interp.behaviour.sampling.likelihood import TokenizedAnswer, tokenize_answers

    prompts = [[{"role": "user", "content": text}] for text in pairs["question"] for _ in range(2)]
    texts = [text for pair in zip(pairs["aligned"], pairs["misaligned"], strict=True) for text in pair]
    ends = set(eos_token_ids(base.model, base.tokenizer))
    rows = tokenize_answers(base, prompts, texts)
    return [TokenizedAnswer(r.prompt, r.answer[:-1] if r.answer[-1] in ends else r.answer) for r in rows]


@contextmanager
def _reader(
    run: Run,
    base: Base,
    trajectory: AdapterTrajectory,
    answers: list[TokenizedAnswer],
    conditions: Sequence[tuple[int, float]],
    servers: VLLMConfig | None,
) -> Iterator[Callable[[Sequence[tuple[int, float]]], list[list[float]]]]:
    """What reads the log-likelihood of every answer at a part of the conditions: this process, or vLLM servers."""
    if servers is None:
        adapted = trajectory.kind != "full"
        frozen = frozen_layer_cache(base.model, trajectory.sites, sum(map(len, answers))) if adapted else None
        models = CheckpointModels(run, base, trajectory)
        yield lambda part: _read(models, answers, part, frozen)
        return
    from em_interp.behaviour.sampling.generate import Sampler
    from em_interp.behaviour.vllm.engine import VLLMEngine

    sampler = Sampler(base.model, base.tokenizer, 0.0, max(len(answer.answer) for answer in answers), 0)
    folder = run.preferences_file.with_name("preferences.adapters")
    with VLLMEngine(servers, base, trajectory, sampler, folder) as engine:
        engine.open(answers, conditions)
        yield lambda part: engine.read(answers, part).tolist()


def _read(
    models: CheckpointModels,
    answers: list[TokenizedAnswer],
    conditions: Sequence[tuple[int, float]],
    frozen: FrozenLayerCache | None,
) -> list[list[float]]:
    """For each step and scale, the log-likelihood of every answer."""
    from em_interp.behaviour.sampling.likelihood import batches_by_length, log_likelihoods

    rows = [(answer, condition) for condition in conditions for answer in answers]
    values = np.zeros(len(rows))
    vocabulary = models.base.model.config.get_text_config().vocab_size
    for batch in batches_by_length([answer for answer, _ in rows], vocabulary):
        steps, scales = zip(*(rows[index][1] for index in batch), strict=True)
        model, _ = models.of(steps[:1], scales[:1])

        def adapters_of(some: Sequence[int], steps: Any = steps, scales: Any = scales) -> RowAdapters:
            return models.of([steps[i] for i in some], [scales[i] for i in some])[1]

        some = [rows[index][0] for index in batch]
        values[batch] = log_likelihoods(model, models.base.tokenizer, some, adapters_of, frozen=frozen)
    return values.reshape(len(conditions), len(answers)).tolist()


def _write(
    file: Path,
    pairs: pd.DataFrame,
    answers: Sequence[TokenizedAnswer],
    conditions: Sequence[tuple[int, float]],
    values: Sequence[Any],
) -> None:
    """All parts as one table, a row a step, scale and pair."""
    import pandas as pd

    tokens = [len(answer.answer) for answer in answers]
    tables = []
    for (step, scale), read in zip(conditions, values, strict=True):
        rows = pairs[["questions", "question_id", "pair", "question"]].assign(step=step, scale=scale)
        for place, kind in enumerate(("aligned", "misaligned")):
            rows[f"log_likelihood_{kind}"], rows[f"tokens_{kind}"] = read[place::2], tokens[place::2]
        tables.append(rows)
    table = pd.concat(tables, ignore_index=True)
    with write_beside(file) as part:
        table[["step", "scale", *table.columns.drop(["step", "scale"])]].to_parquet(part, index=False)
