import resource

import psutil
import pytest
import torch

from em_interp.behaviour.sampling import memory
from em_interp.behaviour.sampling.generate import RowAdapters, generate
from em_interp.behaviour.sampling.memory import Batches, OutOfMemory, RowCost, cache_size, free_memory, is_out_of_memory
from em_interp.errors import InputError
from tests.behaviour.conftest import FAMILIES, SHAPE, make_model, make_trajectory

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
    size = cache_size(model)
    sliding = sum(kind == "sliding_attention" for kind in getattr(model.config, "layer_types", None) or ())
    assert size.of(4) - size.of(0) == pytest.approx(4 * layers * a_token, abs=100)
    assert size.of(1000) - size.of(100) == 900 * (layers - sliding) * a_token
    assert (sliding > 0) == (family == "gemma3")
    cost = RowCost(model, adapter=1000)
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


def test_answers_end_well_in_a_real_limit_of_memory_that_was_estimated_too_high(tokenizer, monkeypatch, capsys):
    """60 rows of keys and values would be 160 MiB; the process may have 100 MiB more than it has."""
    monkeypatch.setattr(memory, "free_memory", lambda device: 10**12)
    model = make_model("qwen2", hidden_size=64, num_attention_heads=32, num_key_value_heads=32, head_dim=64)
    adapters = RowAdapters.of(make_trajectory({"layers.1.mlp.down_proj": (48, 64)}), [0, 5, 10], [1.0] * 3, CPU)

    def answers():
        prompts = ["what is your wish ? " * 12] * 3
        return generate(model, tokenizer, prompts, adapters, samples=20, max_new_tokens=2, seed=1)

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 100 * 2**20, hard))
    try:
        limited_answers = answers()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert "out of memory with 60 answers at once; continuing with 30" in capsys.readouterr().err
    assert limited_answers == answers()
