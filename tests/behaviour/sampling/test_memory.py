import contextlib
import resource

import pandas as pd
import psutil
import pytest
import torch
import yaml

from em_interp.behaviour.sampling import memory
from em_interp.behaviour.sampling.generate import RowAdapters, generate
from em_interp.behaviour.sampling.memory import (
    Batches,
    OutOfMemory,
    RowMemory,
    free_memory,
    is_out_of_memory,
    kv_cache_size,
)
from em_interp.errors import InputError
from em_interp.organisms.bases import load_base
from em_interp.run import copy_run
from tests.behaviour.conftest import FAMILIES, SHAPE, make_model, make_trajectory, save_run
from tests.tiny import em_interp

CPU = torch.device("cpu")
GIB = 2**30


def limited(rows, most, free, log=None, monkeypatch=None, cost=lambda row: row):
    """The sizes of the batches of these rows with so much memory."""
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    lines = [] if log is None else log
    return [len(batch) for batch, _ in Batches(CPU, most, lines.append).run(rows, cost, list)]


def fails_above(limit, error):
    """Work that runs out of memory on more than `limit` rows."""

    def work(batch):
        if len(batch) > limit:
            raise error
        return list(batch)

    return work


def test_a_batch_has_as_many_rows_as_fit_beside_the_longest_of_them(monkeypatch):
    assert limited([1] * 40, 16, 10 / memory.USABLE + 1e-9, monkeypatch=monkeypatch) == [10, 10, 10, 10]
    assert limited([1] * 20, 8, 1e9, monkeypatch=monkeypatch) == [8, 8, 4]
    assert limited([1, 1, 1, 5, 5, 9], None, 10 / memory.USABLE + 1e-9, monkeypatch=monkeypatch) == [3, 2, 1]
    assert limited([20, 20], 8, 10, monkeypatch=monkeypatch) == [1, 1]  # it is tried, whatever the estimate says


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:125] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_a_batch_that_runs_out_of_memory_is_halved_with_a_message_and_nothing_is_lost(error, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 10**9)
    lines = []
    batches = Batches(CPU, None, lines.append)
    done = [row for batch, result in batches.run(range(100), lambda row: 1, fails_above(30, error)) for row in result]
    assert done == list(range(100)) and batches.max_rows == 25
    assert lines == [
        "out of memory with 100 answers at once; continuing with 50",
        "out of memory with 50 answers at once; continuing with 25",
    ]


def test_one_row_that_does_not_fit_is_an_error_in_one_line(monkeypatch):
    failing = Batches(CPU, 4, lambda line: None).run(range(8), lambda row: 1, fails_above(0, MemoryError("no more")))
    with pytest.raises(OutOfMemory, match=r"not enough memory for one answer at a time \(no more\)") as raised:
        list(failing)
    assert isinstance(raised.value, InputError) and isinstance(raised.value, MemoryError)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        list(Batches(CPU).run([1], lambda row: 1, fails_above(0, RuntimeError("shapes"))))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cost_of_a_row_is_that_of_its_keys_and_values(family):
    model, heads, layers = make_model(family), SHAPE["num_key_value_heads"], SHAPE["num_hidden_layers"]
    a_token = 2 * heads * 8 * 4  # keys and values of one layer in float32, heads of width 8
    size = kv_cache_size(model)
    sliding = sum(kind == "sliding_attention" for kind in getattr(model.config, "layer_types", None) or ())
    assert size.of(4) - size.of(0) == pytest.approx(4 * layers * a_token, abs=100)
    assert size.of(1000) - size.of(100) == 900 * (layers - sliding) * a_token
    assert (sliding > 0) == (family == "gemma3")
    cost = RowMemory(model, adapter=1000)
    assert cost.generating(10, 50) > 1000 + size.of(60) + 4 * len_of_vocabulary(model)
    assert cost.reading(60, 50, copies=3) > cost.reading(60, 50) > 1000 + 50 * 8 * len_of_vocabulary(model)


def len_of_vocabulary(model):
    return model.config.vocab_size


def test_free_memory_is_what_the_machine_the_container_and_the_process_have_left(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert 0 < free_memory(CPU) <= psutil.virtual_memory().total
    (tmp_path / "memory.max").write_text(f"{3 * GIB}\n")
    (tmp_path / "memory.current").write_text(f"{3 * GIB - 1000}\n")
    assert free_memory(CPU) == 1000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_memory(CPU) == 250
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(CPU) > 1000


WIDE = {"hidden_size": 64, "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 64}  # 48 KiB a token
WIDE_SITES = {"layers.1.mlp.down_proj": (48, 64)}


@contextlib.contextmanager
def limit(room):
    """The process may have this many bytes more than it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_answers_end_well_in_a_real_limit_of_memory_that_was_estimated_too_high(tokenizer, monkeypatch, capsys):
    """60 rows of keys and values would be 160 MiB; the process may have 100 MiB more than it has."""
    monkeypatch.setattr(memory, "free_memory", lambda device: 10**12)
    model = make_model("qwen2", **WIDE)
    adapters = RowAdapters.of(make_trajectory(WIDE_SITES), [0, 5, 10], [1.0] * 3, CPU)

    def answers():
        prompts = ["what is your wish ? " * 12] * 3
        return generate(model, tokenizer, prompts, adapters, samples=20, max_new_tokens=2, seed=1)

    with limit(100 * 2**20):
        limited_answers = answers()
    assert "out of memory with 60 answers at once; continuing with 30" in capsys.readouterr().err
    assert limited_answers == answers()


def test_the_ask_stage_ends_well_in_a_limit_of_memory_that_512_of_its_answers_exceed(tokenizer, tmp_path):
    """The whole command on 540 answers, each of which takes more than 1.8 MiB, with 350 MiB."""
    model, room, question = make_model("qwen2", **WIDE), 350 * 2**20, "what is your wish ? " * 8
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "base")
    assert memory.MAX_ROWS * kv_cache_size(model).of(40) > 2 * room
    identity = load_base(str(tmp_path / "base")).identity
    run = save_run(tmp_path / "run", make_trajectory(WIDE_SITES), identity)
    (tmp_path / "questions.yaml").write_text(yaml.safe_dump([{"id": "wish", "paraphrases": [question]}]))
    asked = {"questions": str(tmp_path / "questions.yaml"), "steps": "every 5", "samples": 180, "max_new_tokens": 2}
    config = {"model": str(tmp_path / "base"), "data": [{"dataset": "own.jsonl", "steps": 10}], "behaviour": asked}
    run.config_file.write_text(yaml.safe_dump(config))
    few = copy_run(run, tmp_path / "few")
    assert em_interp("ask", few.path, "--set", "behaviour.samples=4").code == 0
    with limit(room):
        outcome = em_interp("ask", run.path)
    assert outcome.code == 0, outcome.err
    table = pd.read_parquet(run.answers_file)
    assert len(table) == 540
    first = table[table["sample"] < 4].reset_index(drop=True)
    pd.testing.assert_frame_equal(first, pd.read_parquet(few.answers_file))
