"""Reading the checkpoints of a run into arrays: the same as one by one, whichever way a file is read."""

import json
import os
import shutil
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from em_interp.errors import InputError
from em_interp.layouts import WEIGHTS_FILE
from em_interp.trajectory import stacked
from em_interp.trajectory.load import load_trajectory
from em_interp.trajectory.lora_files import read_lora
from em_interp.trajectory.packed import write_packed
from tests.trajectory.saving import SITE, save_adapter, save_run

OTHER = SITE.replace("21", "3")


def save_random_run(root, rank=3, **others):
    """Two sites of random numbers at six steps; `others` are further tensors of each file."""
    rng = np.random.default_rng(0)
    for step in range(6):
        folder = save_adapter(root / f"checkpoint-{step}", rank=rank)
        tensors = {
            f"base_model.model.{module}.lora_{part}.weight": rng.normal(size=shape).astype("f4")
            for module in (SITE, OTHER)
            for part, shape in (("A", (rank, 5)), ("B", (4, rank)))
        }
        save_file(tensors | others, folder / "adapter_model.safetensors")
    return root


def checkpoints_read_alone(monkeypatch):
    """The folders whose files do not go straight into the arrays, from now on."""
    folders, read = [], stacked.read_checkpoint
    monkeypatch.setattr(stacked, "read_checkpoint", lambda place, *a: folders.append(place.name) or read(place, *a))
    return folders


def assert_same_as_one_by_one(root):
    path = load_trajectory(root)
    for step in path:
        alone = read_lora(root / f"checkpoint-{step}")
        for site, (A, B) in path[step].items():
            np.testing.assert_array_equal(A, alone.A[site])
            np.testing.assert_array_equal(B, alone.B[site])


@pytest.mark.parametrize("buffers", [2, 1024])
@pytest.mark.parametrize("others", [{}, {"lm_head.weight": np.ones((3, 3), "f4"), "a.bias": np.zeros(2, "f2")}])
def test_numbers_go_from_files_that_are_alike_straight_into_their_rows(tmp_path, monkeypatch, buffers, others):
    monkeypatch.setattr(stacked, "MAX_BUFFERS", buffers)
    save_random_run(tmp_path, **others)
    alone = checkpoints_read_alone(monkeypatch)
    assert_same_as_one_by_one(tmp_path)
    assert alone == ["checkpoint-0"]


def test_a_file_that_is_laid_out_otherwise_is_read_and_checked_on_its_own(tmp_path, monkeypatch):
    save_random_run(tmp_path)
    file = tmp_path / "checkpoint-2/adapter_model.safetensors"
    tensors = {f"base_model.model.{SITE}.lora_A.weight": np.ones((3, 5), "f2")}
    tensors |= {f"base_model.model.{SITE}.lora_B.weight": np.ones((4, 3), "f2")}
    tensors |= {key.replace("21", "3"): value for key, value in tensors.items()}
    save_file(tensors, file)  # in half precision
    settings = tmp_path / "checkpoint-4/adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"lora_dropout": 0.1}))
    alone = checkpoints_read_alone(monkeypatch)
    assert_same_as_one_by_one(tmp_path)
    assert alone == ["checkpoint-0", "checkpoint-2", "checkpoint-4"]


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda content: content[:-1], "may be truncated"),
        (lambda content: content + b"1", "is not a whole safetensors file"),
        (lambda content: content[:-4] + np.float32("nan").tobytes(), "lora_B of layers.3.mlp.down_proj holds NaN"),
        (lambda content: content.replace(b"lora_B", b"lora_C", 1), "which is not a lora_A or lora_B matrix"),
        (lambda content: b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    ],
)
def test_what_is_wrong_in_a_later_file_is_named(tmp_path, spoil, error):
    file = save_random_run(tmp_path) / "checkpoint-3/adapter_model.safetensors"
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(InputError, match=rf"checkpoint-3/adapter_model\.safetensors.*{error}"):
        load_trajectory(tmp_path)


def test_an_adapter_that_is_as_new_in_the_middle_of_a_run_is_named(tmp_path):
    folder = save_random_run(tmp_path) / "checkpoint-3"
    save_file({**load_file(folder / WEIGHTS_FILE), **zeros_of(folder, "lora_B")}, folder / WEIGHTS_FILE)
    with pytest.raises(
        InputError, match=r"checkpoint-3/adapter_model\.safetensors: lora_B is zero, .* before training"
    ):
        load_trajectory(tmp_path)


def zeros_of(folder, matrix):
    return {key: 0 * value for key, value in load_file(folder / WEIGHTS_FILE).items() if matrix in key}


def held_at_most(work):
    """What some work returns, and the bytes of memory that its arrays took at most; mapped files are not among them."""
    tracemalloc.start()
    try:
        return work(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_path_larger_than_memory_is_read_measured_and_packed_a_part_at_a_time(tmp_path, monkeypatch):
    rng, files = np.random.default_rng(0), tmp_path / "run"
    key = f"base_model.model.{SITE}.lora_{{}}.weight"
    for step in range(40):
        folder = save_adapter(files / f"checkpoint-{step}", rank=2)
        A, B = rng.normal(size=(2, 20_000)).astype("f4"), rng.normal(size=(30_000, 2)).astype("f4")
        save_file({key.format("A"): A, key.format("B"): B}, folder / "adapter_model.safetensors")
    in_memory = load_trajectory(files)
    monkeypatch.setattr("em_interp.trajectory.trajectory.BLOCK", 2**15)
    whole = {of: in_memory.gram(of) for of in ("A", "B", "delta")}
    monkeypatch.setattr(stacked, "BLOCK", 2**15)
    monkeypatch.setattr(stacked, "_memory", lambda: 2**20)

    def read_and_packed():
        path = load_trajectory(files)
        return path, load_trajectory(write_packed(path, tmp_path / "packed.safetensors"))

    paths, held = held_at_most(read_and_packed)
    assert held < 0.15 * (size := 40 * 400_000)  # of a file, and of a block
    for path in paths:
        for of in ("A", "B"):
            gram, held = held_at_most(lambda path=path, of=of: path.gram(of))
            assert held < 0.1 * size
            np.testing.assert_array_equal(gram, whole[of])
        np.testing.assert_array_equal(path.gram("delta"), whole["delta"])
        np.testing.assert_array_equal(path.vectors("B"), in_memory.vectors("B"))


def test_a_path_for_which_neither_memory_nor_disk_has_room_is_refused_with_its_size(tmp_path, monkeypatch):
    save_run(tmp_path)
    monkeypatch.setattr(stacked, "_memory", lambda: 100)
    monkeypatch.setattr(stacked.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(200, 190, 10))
    with pytest.raises(InputError, match=r"3 steps of 1 sites need 0.0 GiB; this machine has 0.0 GiB of memory and"):
        load_trajectory(tmp_path)


def test_a_pipe_in_the_place_of_the_settings_is_refused_and_not_waited_for(tmp_path):
    settings = save_run(tmp_path) / "checkpoints/checkpoint-5/adapter_config.json"
    settings.unlink()
    os.mkfifo(settings)
    with pytest.raises(InputError, match=r"checkpoint-5/adapter_config\.json is a pipe, socket or device"):
        load_trajectory(tmp_path)
