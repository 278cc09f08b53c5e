"""Steering vectors: torch's files read without torch, and nothing in them run."""

import io
import pickle
import zipfile

import pytest
import torch

import em_interp as em
from em_interp.errors import InputError
from tests.trajectory.saving import save_adapter, save_steering


class Harmful:
    def __reduce__(self):
        return (print, ("a pickle was run",))


def test_a_steering_file_that_would_run_something_or_holds_no_vector_is_refused(tmp_path, capsys):
    for name, held, said in (
        ("harmful", Harmful(), "it asks for __builtin__.print, which is no part of a tensor"),
        ("matrix", torch.ones(2, 6), r"expected one vector.* shape \(2, 6\)"),
        ("words", "vector", "expected one vector.*found str"),
        ("wrong size", torch.ones(7), "a vector of 7 numbers; hidden_size is 6"),
        ("strided", torch.ones(6, 2)[:, 0], "expected it to be contiguous"),
    ):
        for step in (0, 1):
            save_steering(tmp_path / name, step, held, named=False)
        with pytest.raises(InputError, match=said):
            em.load_trajectory(tmp_path / name)
    save_steering(tmp_path / "cut", 0, torch.ones(6))
    file = save_steering(tmp_path / "cut", 1, torch.ones(6)) / "steering_vector.pt"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(InputError, match="may be truncated"):
        em.load_trajectory(tmp_path / "cut")
    file.unlink()
    with pytest.raises(
        InputError, match=r"checkpoint-1/steering_vector\.pt is missing; the checkpoint is not complete"
    ):
        em.load_trajectory(tmp_path / "cut")
    save_adapter(tmp_path / "mixed/checkpoint-0")
    save_steering(tmp_path / "mixed", 1, torch.ones(6))
    with pytest.raises(InputError, match="checkpoint-1 holds a steering vector, but checkpoint-0 a LoRA adapter"):
        em.load_trajectory(tmp_path / "mixed")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("shape", [(6,), (6, 1), (1, 6)])
def test_a_steering_vector_may_have_an_axis_of_length_one(tmp_path, shape):
    for step in (0, 1):
        save_steering(tmp_path, step, torch.arange(6.0).reshape(shape) * step)
    path = em.load_trajectory(tmp_path)
    assert path.kind == "steering" and path.B["layers.24"][1].ravel().tolist() == [0, 1, 2, 3, 4, 5]


def torch_zip(pickled, **storages):
    """A file as torch.save lays it out, with any pickle and storages in it."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        for name, numbers in storages.items():
            archive.writestr(f"a/data/{name}", numbers)
    return content.getvalue()


BOMBS = {
    "a memo of four billion": (b"\x80\x02Nr\xff\xff\xff\xff.", "a memo of 4294967295 entries"),
    "bytes that are not there": (b"\x80\x05\x96\xff\xff\xff\xff\x00\x00\x00\x00.", "is not a"),
    "a name of Python's": (b"\x80\x02cbuiltins\nprint\n.", "it asks for builtins.print"),
    "a persistent text": (b"\x80\x02P1\n.", "the opcode PERSID"),
    "numbers in text": (pickle.dumps(10**2000, 0), "the opcode LONG"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_small_file_does_not_take_much_memory(tmp_path, kind):
    pickled, said = BOMBS[kind]
    for step in (0, 1):
        file = save_steering(tmp_path, step, torch.ones(6)) / "steering_vector.pt"
        file.write_bytes(torch_zip(pickled))
    with pytest.raises(InputError, match=said):
        em.load_trajectory(tmp_path)


def test_a_storage_that_is_read_again_and_again_is_read_once(tmp_path):
    shared = torch.arange(6.0)
    torch.save({"steering_vector": shared, "again": [shared[:3]] * 50, "layer_idx": 24, "alpha": 1.0}, tmp_path / "x")
    for step in (0, 1):
        file = save_steering(tmp_path, step, torch.ones(6)) / "steering_vector.pt"
        file.write_bytes((tmp_path / "x").read_bytes())
    assert em.load_trajectory(tmp_path).B["layers.24"].shape == (2, 6, 1)
