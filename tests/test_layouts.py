"""Every name that libraries give to checkpoints: the step is read from it, or the folder is refused in one line."""

import json
import math

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import em_interp as em
from em_interp.errors import InputError
from em_interp.layouts import LAYOUTS, listing_of, saved_steps
from em_interp.trajectory.load import load_trajectory
from tests.trajectory.saving import save_adapter, save_log

SITE = "layers.21.mlp.down_proj"


def save_named(root, name, numbers=(1, 10, 100), inside="", **given):
    for number in numbers:
        save_adapter(root / name.format(number) / inside, value=float(number), **given)
    return root


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint-{}",
        "checkpoints/checkpoint-{}",
        "checkpoint_{}",
        "Checkpoint-{}",
        "checkpoint-{:05}",
        "checkpoint-step-{}",
        "step_{}",
        "step-{}",
        "step{}",
        "global_step{}",
        "iter_{:07}",
        "runs/first/step_{}",
        "first/checkpoints/step_{}",
    ],
)
def test_steps_are_read_from_the_names_of_folders(tmp_path, name):
    path = load_trajectory(save_named(tmp_path, name))
    assert path.steps.tolist() == [1, 10, 100]
    assert path.B[SITE][:, 0, 0].tolist() == [1, 10, 100]


@pytest.mark.parametrize("name", ["epoch_{}", "epoch-{}", "checkpoint-epoch-{}"])
def test_a_checkpoint_named_after_its_epoch_has_the_step_of_its_trainer_state(tmp_path, name):
    save_named(tmp_path, name, (1, 2))
    with pytest.raises(InputError, match=r"named after an epoch; expected its global_step in .*trainer_state.json$"):
        load_trajectory(tmp_path)
    for epoch in (1, 2):
        (tmp_path / name.format(epoch) / "trainer_state.json").write_text(json.dumps({"global_step": 40 * epoch}))
    assert load_trajectory(tmp_path).steps.tolist() == [40, 80]


def test_an_adapter_in_a_folder_of_its_own_is_read_and_several_are_told_apart_by_name(tmp_path):
    save_named(tmp_path, "checkpoint-{}", inside="mine")
    assert load_trajectory(tmp_path).B[SITE][:, 0, 0].tolist() == [1, 10, 100]
    for step in (1, 10, 100):
        save_adapter(tmp_path / f"checkpoint-{step}" / "reference", value=7.0)
    with pytest.raises(
        InputError, match=r"checkpoint-1 holds several adapters: mine, reference; choose one with adapter="
    ):
        load_trajectory(tmp_path)
    assert load_trajectory(tmp_path, adapter="mine").B[SITE][:, 0, 0].tolist() == [1, 10, 100]
    assert em.locate(tmp_path, adapter="mine").trajectory.steps.tolist() == [1, 10, 100]
    assert load_trajectory(tmp_path, adapter="reference").B[SITE][:, 0, 0].tolist() == [7, 7, 7]


def test_what_mlx_s_settings_or_keys_contradict_is_refused(tmp_path):
    save_mlx(tmp_path / "rank")
    file = tmp_path / "rank/adapter_config.json"
    file.write_text(file.read_text().replace('"rank": 2', '"rank": 8'))
    with pytest.raises(InputError, match=r"has rank 2; adapter_config\.json beside it says 8"):
        load_trajectory(tmp_path / "rank")
    save_mlx(tmp_path / "experts")
    for step in (100, 200):
        place = tmp_path / f"experts/{step:07d}_adapters.safetensors"
        save_file(load_file(place) | {"model.layers.0.mlp.experts.lora_a": np.ones((3, 5, 2), "f4")}, place)
    with pytest.raises(InputError, match=r"experts\.lora_a of shape \(3, 5, 2\) is no lora_a or lora_b matrix"):
        load_trajectory(tmp_path / "experts")


def save_mlx(root, steps=(100, 200), rank=2, **parameters):
    """A folder as mlx_lm writes it: a file a step beside the final one, matrices transposed, and the scale itself."""
    root.mkdir(parents=True, exist_ok=True)
    module = "model.layers.21.mlp.down_proj"
    for name, step in (*((f"{step:07}_adapters", step) for step in steps), ("adapters", 0)):
        a = np.arange(5 * rank, dtype="f4").reshape(5, rank)
        save_file(
            {f"{module}.lora_a": a, f"{module}.lora_b": np.full((rank, 4), step, "f4")}, root / f"{name}.safetensors"
        )
    settings = {"rank": rank, "scale": 20.0, "dropout": 0.0} | parameters
    config = {"fine_tune_type": "lora", "lora_parameters": settings, "model": "mlx-community/small"}
    (root / "adapter_config.json").write_text(json.dumps(config))
    return root


def test_files_of_mlx_are_read_with_their_matrices_transposed(tmp_path):
    path = load_trajectory(save_mlx(tmp_path / "adapters"))
    assert path.steps.tolist() == [100, 200] and path.scale == {SITE: 20.0} and path.base == "mlx-community/small"
    np.testing.assert_array_equal(path.A[SITE][0], np.arange(10, dtype="f4").reshape(5, 2).T)
    assert path.B[SITE].shape == (2, 4, 2) and path.B[SITE][1, 0, 0] == 200
    with pytest.raises(InputError, match=r"one LoRA adapter, of which none can be chosen; found adapter='mine'"):
        load_trajectory(tmp_path / "adapters", adapter="mine")
    with pytest.raises(InputError, match="alpha beside scale, which versions of MLX read differently"):
        load_trajectory(save_mlx(tmp_path / "older", alpha=16.0))


def test_steps_of_several_runs_or_layouts_are_refused_with_what_was_found(tmp_path):
    save_named(tmp_path / "two", "runs/first/step_{}"), save_named(tmp_path / "two", "runs/second/step_{}", (1, 2))
    with pytest.raises(InputError, match=r"several runs: runs/first \(3 steps\), runs/second \(2 steps\); give one"):
        load_trajectory(tmp_path / "two")
    save_named(tmp_path / "mixed", "checkpoint-{}"), save_named(tmp_path / "mixed", "step_{}", (5,))
    with pytest.raises(InputError, match=r"several layouts: checkpoint-<step> \(3\), step_<step> \(1\)"):
        load_trajectory(tmp_path / "mixed")
    with pytest.raises(InputError, match=r"checkpoint-00.*and checkpoint-.*are the same step"):
        load_trajectory(save_named(save_named(tmp_path / "twice", "checkpoint-{}"), "checkpoint-{:05}"))
    with pytest.raises(InputError, match="a step beyond 2\\*\\*53"):
        load_trajectory(save_named(tmp_path / "far", "checkpoint-{}", (1, 2**53 + 1)))


def test_a_folder_with_steps_of_two_runs_lists_the_groups(tmp_path):
    save_named(tmp_path, "checkpoint-{}", (1, 2))
    save_named(tmp_path, "checkpoint-{}", (3,), modules=tuple(f"model.layers.{n}.mlp.down_proj" for n in range(36)))
    with pytest.raises(
        InputError, match=r"2 steps 1 to 2 \(.*\), step 3 \(.*and 34 more.*\); give a folder of"
    ) as said:
        load_trajectory(tmp_path)
    assert len(str(said.value)) < 600
    save_named(tmp_path / "longer", "checkpoint-{}", (1, 2))
    for step, last in ((1, 100), (2, 200)):
        folder = tmp_path / f"longer/checkpoint-{step}"
        save_log(folder, [{"step": 1, "loss": 1.0}])
        state = json.loads((folder / "trainer_state.json").read_text()) | {"max_steps": last}
        (folder / "trainer_state.json").write_text(json.dumps(state, indent=2))
    with pytest.raises(InputError, match=r"differ in max_steps: step 1 \(max_steps 100\), step 2 \(max_steps 200\)"):
        load_trajectory(tmp_path / "longer")


def test_what_an_earlier_run_left_in_the_folder_is_told_by_the_logs_in_the_checkpoints(tmp_path):
    from transformers.trainer_callback import TrainerState

    def save(step, first_loss, begin=1):
        save_named(tmp_path, "checkpoint-{}", (step,))
        rows = [{"epoch": 0.1, "loss": first_loss - s / 9, "step": s} for s in range(begin, step + 1)]
        TrainerState(log_history=rows, max_steps=9).save_to_json(tmp_path / f"checkpoint-{step}/trainer_state.json")

    for step in range(1, 6):
        save(step, 2.5 if step < 4 else 2.75)
    with pytest.raises(InputError, match=r"differ in loss logged at step 1: 3 steps 1 to 3 .*, 2 steps 4 to 5 \("):
        load_trajectory(tmp_path)
    for step in (4, 5):
        save(step, 2.5, begin=4)  # as some trainers log after resuming
    save(3, math.nan)
    save(2, math.nan)
    save(1, math.nan)
    assert load_trajectory(tmp_path).steps.tolist() == [1, 2, 3, 4, 5]


def test_few_checkpoints_are_told_with_how_densely_to_save(tmp_path):
    (note,) = load_trajectory(save_named(tmp_path, "checkpoint-{}", (0, 200, 400))).notes
    assert (
        note == "3 checkpoints are too few to tell a turn from noise: save 21 or more, better 100 (here every 4 steps)"
    )
    assert load_trajectory(save_named(tmp_path / "dense", "checkpoint-{}", range(21))).notes == ()


def test_names_that_are_no_checkpoints_are_listed_beside_those_that_are(tmp_path):
    save_named(tmp_path, "checkpoint-{}-merged")
    known = ", ".join(layout.name for layout in LAYOUTS)
    with pytest.raises(InputError, match=f"found none \\(it holds checkpoint-1-merged.*names that are read: {known}"):
        load_trajectory(tmp_path)
    assert saved_steps(listing_of(tmp_path), "here") == []


def test_every_layout_is_in_the_docs():
    from pathlib import Path

    page = (Path(__file__).parents[1] / "docs/layouts.md").read_text()
    assert all(layout.name in page for layout in LAYOUTS)


FOREIGN = {
    "pytorch_model_fsdp_0/x": "a sharded FSDP checkpoint: save with FSDP's state_dict_type FULL_STATE_DICT",
    "model.safetensors": "a full model: a path needs adapters",
    "model-00001-of-00002.safetensors": "a full model",
    "pytorch_model.bin": "a full model",
    "adapter_model-00001-of-00002.safetensors": "an adapter in several files",
    "global_step5/x": "DeepSpeed's state without an adapter",
    "zero_pp_rank_0_mp_rank_00_optim_states.pt": "DeepSpeed's state without an adapter",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_adapter_is_named_with_what_to_do(tmp_path, name):
    for step in (5, 10):
        file = tmp_path / f"checkpoint-{step}" / name
        file.parent.mkdir(parents=True)
        file.write_bytes(b"x")
    with pytest.raises(InputError, match=FOREIGN[name]):
        load_trajectory(tmp_path)


def test_a_clone_without_git_lfs_is_told_what_to_run(tmp_path):
    for step in (5, 10):
        folder = save_adapter(tmp_path / f"checkpoint-{step}")
        (folder / "adapter_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid x\nsize 9\n")
    with pytest.raises(InputError, match="is a Git LFS pointer, not the file itself; run `git lfs pull`"):
        load_trajectory(tmp_path)
