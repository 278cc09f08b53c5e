"""Steering vectors: torch's files read without torch, and nothing in them run."""

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
