"""Files: only regular ones are read, and nothing is written or copied through a link out of a run."""

import os
import shutil
from pathlib import Path

import pytest

from em_interp.errors import InputError
from em_interp.hub.publishing import _files_to_publish
from em_interp.run import Run, copy_run
from em_interp.trajectory.load import load_trajectory
from em_interp.utils.files import (
    MAX_NAME,
    read_bytes,
    read_json,
    read_text,
    refuse_links,
    safe_name,
    write_beside,
    write_json,
    write_text,
)
from tests.tiny import contents
from tests.trajectory.saving import save_adapter, save_run


def test_what_may_have_no_end_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "link.json").symlink_to("/dev/zero")
    for name in ("pipe.json", "link.json"):
        for reader in (read_text, read_bytes, read_json):
            with pytest.raises(InputError, match=f"{name} is a pipe, socket or device; a file was expected"):
                reader(tmp_path / name)
    for step in (0, 1):
        folder = save_adapter(tmp_path / f"checkpoint-{step}")
        (folder / "adapter_model.safetensors").unlink()
        (folder / "adapter_model.safetensors").symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"adapter_model\.safetensors is a pipe, socket or device"):
        load_trajectory(tmp_path)


@pytest.mark.parametrize("reader", [read_text, read_bytes, read_json])
def test_a_file_with_holes_that_claims_gigabytes_is_refused_by_its_size(reader, tmp_path):
    with (tmp_path / "file").open("wb") as file:
        file.truncate(2**33)
    with pytest.raises(InputError, match=r"file holds 8\.0 GiB; 1 at most are read"):
        reader(tmp_path / "file")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_with_holes_that_claims_gigabytes_is_refused_before_it_is_read(name, tmp_path):
    folder = save_adapter(tmp_path / "checkpoint-0")
    (folder / "adapter_model.safetensors").unlink()
    with (folder / name).open("wb") as file:
        file.truncate(2**40)
    shutil.copytree(save_adapter(tmp_path / "checkpoint-1"), tmp_path / "checkpoint-2")
    with pytest.raises(InputError, match=f"{name} .*1099511627776 bytes. is not a whole"):
        load_trajectory(tmp_path)


@pytest.mark.parametrize("reader", [read_text, read_bytes, read_json])
def test_a_name_that_no_file_can_have_is_refused(reader):
    with pytest.raises(InputError, match="cannot be the name of a file"):
        reader(Path("a\0b"))
    with pytest.raises(InputError, match="cannot be read: File name too long"):
        reader(Path("x" * 300))


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    (tmp_path / "value.json").write_text('\ufeff{"a": 1}', encoding="utf-8")
    assert read_json(tmp_path / "value.json") == {"a": 1}


def test_a_json_file_with_a_key_twice_is_refused_for_the_last_would_win_in_silence(tmp_path):
    (tmp_path / "value.json").write_text('{"r": 1, "r": 2}')
    with pytest.raises(InputError, match=r"value.json: not valid JSON \(a key occurs twice among r, r\)"):
        read_json(tmp_path / "value.json")


NAMES = {
    "plain": "plain",
    "gpt-4.1_mini": "gpt-4.1_mini",
    "/../../OUTSIDE": "_.._.._OUTSIDE",
    "a\x00b\nc": "a_b_c",
    "Größe": "Größe",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_from_elsewhere_is_a_name_of_a_file(name):
    assert safe_name(name) == NAMES[name]


def test_names_that_lead_elsewhere_or_are_too_long_get_a_hash():
    for name in ("..", ".", "", "x" * 300, "\ud800" * 300):
        safe = safe_name(name)
        assert "/" not in safe and safe.strip(".") and len(safe) <= MAX_NAME + 9
    assert safe_name("x" * 300) != safe_name("x" * 301)


def a_run(folder):
    save_run(folder / "run")
    write_text(folder / "run/config.yaml", "seed: 1\n")
    (folder / "outside").mkdir()
    return Run(folder / "run")


@pytest.mark.parametrize("place", ["analysis", "behaviour", "figures", "resume", "checkpoints/checkpoint-10"])
def test_nothing_is_written_through_a_folder_of_a_run_that_is_a_link(tmp_path, place):
    run = a_run(tmp_path)
    folder = run.path / place
    if folder.exists():
        folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "outside")
    for write in (lambda: write_json(folder / "inner/found.json", {}), lambda: refuse_links(folder / "log", True)):
        with pytest.raises(InputError, match=f"{place} is a link, which is not written through"):
            write()
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_linked_file_is_replaced_and_one_that_is_appended_to_is_refused(tmp_path):
    run, victim = a_run(tmp_path), tmp_path / "outside/victim"
    victim.write_text("precious")
    run.analysis.mkdir()
    (run.analysis / "locate.json").symlink_to(victim)
    (run.analysis / ".align.json.part").symlink_to(victim)
    with pytest.raises(InputError, match=r"locate.json is a link"):
        refuse_links(run.analysis / "locate.json", in_place=True)
    write_json(run.analysis / "locate.json", {"a": 1})
    write_json(run.analysis / "align.json", {"a": 1})
    assert victim.read_text() == "precious" and not (run.analysis / "locate.json").is_symlink()


def test_a_pipe_in_place_of_a_file_that_is_appended_to_is_refused_and_one_that_is_replaced_is_replaced(tmp_path):
    run = a_run(tmp_path)
    run.analysis.mkdir()
    os.mkfifo(run.analysis / "locate.json")
    with pytest.raises(InputError, match=r"locate.json is a pipe, socket or device; a file was expected"):
        refuse_links(run.analysis / "locate.json", in_place=True)
    write_json(run.analysis / "locate.json", {"a": 1})
    assert (run.analysis / "locate.json").is_file()


def test_links_to_and_around_a_run_are_nobodys_business(tmp_path):
    run = a_run(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/mine").symlink_to(run.path)
    (tmp_path / "analysis").symlink_to(tmp_path / "outside")
    write_json(tmp_path / "checkpoints/mine/analysis/locate.json", {})
    write_json(tmp_path / "analysis/project/run/analysis/locate.json", {})
    assert (run.analysis / "locate.json").exists()


def test_a_copy_of_a_run_follows_links_to_checkpoints_only(tmp_path):
    run = a_run(tmp_path)
    (tmp_path / "outside/secret").write_text("secret")
    os.mkfifo(run.path / "pipe")
    for name, target in (
        ("loop", "."),
        ("etc", tmp_path / "outside"),
        ("notes.txt", tmp_path / "outside/secret"),
        ("inside.yaml", "config.yaml"),
    ):
        (run.path / name).symlink_to(target)
    last = run.checkpoint(10)
    last.rename(tmp_path / "elsewhere")
    last.symlink_to(tmp_path / "elsewhere")
    run.checkpoint(11).symlink_to("..")
    copy = copy_run(run, tmp_path / "copy")
    assert copy.steps()[:3] == [0, 5, 10] and (copy.checkpoint(10) / "adapter_model.safetensors").is_file()
    names = {entry.name for entry in copy.path.iterdir()}
    assert names == {"checkpoints", "config.yaml", "inside.yaml"}
    assert not any(entry.is_symlink() for entry in copy.path.rglob("*"))


@pytest.mark.parametrize("name", ["checkpoint-{}", "checkpoint_{}", "global_step{}", "epoch_{}"])
@pytest.mark.parametrize("where", [".", "checkpoints"])
def test_links_to_the_steps_of_any_layout_are_followed_by_a_copy(tmp_path, name, where):
    (tmp_path / "run" / where).mkdir(parents=True)
    for step in (0, 5):
        save_adapter(tmp_path / f"disk-{step}")
        (tmp_path / "run" / where / name.format(step)).symlink_to(tmp_path / f"disk-{step}")
    copy = copy_run(Run(tmp_path / "run"), tmp_path / "copy")
    for step in (0, 5):
        assert (copy.path / where / name.format(step) / "adapter_model.safetensors").is_file()


BESIDE_AN_ADAPTER = (  # as Trainers of transformers save it, with FSDP and with DeepSpeed, and accelerate's save_state
    *("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_1.pth", "training_args.bin"),
    *("optimizer_0/__0_0.distcp", "pytorch_model_fsdp_0/__0_0.distcp", "optimizer.bin", "pytorch_model_fsdp.bin"),
    *("global_step5/zero_pp_rank_0_mp_rank_00_optim_states.pt", "latest", "zero_to_fp32.py"),
    *("scheduler.bin", "sampler.bin", "random_states_0.pkl", "custom_checkpoint_0.pkl"),
)


@pytest.mark.parametrize("place", ["checkpoint-{}", "checkpoints/checkpoint-{}", "runs/mine/global_step{}"])
def test_of_a_trainers_folder_only_what_is_read_is_copied_and_no_state_of_training_is_published(tmp_path, place):
    run = Run(tmp_path / "run")
    for step in (0, 5):
        folder = save_adapter(run.path / place.format(step))
        save_adapter(folder / "reference")
        for name in (*BESIDE_AN_ADAPTER, "tokenizer.json", "README.md", "trainer_state.json"):
            write_text(folder / name, '{"log_history": []}')
    write_text(run.path / "notes.md", "mine")
    copy = copy_run(run, tmp_path / "copy")
    for step in (0, 5):
        folder = copy.path / place.format(step)
        kept = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        adapter = {"adapter_model.safetensors", "adapter_config.json"}
        assert kept == {*adapter, *(f"reference/{name}" for name in adapter), "trainer_state.json"}
    assert load_trajectory(copy).steps.tolist() == [0, 5] and (copy.path / "notes.md").exists()
    published = {path for path, _ in _files_to_publish(run)}
    assert not [path for path in published if any(path.endswith(f"/{name}") for name in BESIDE_AN_ADAPTER)]
    assert {f"{place.format(5)}/{name}" for name in ("tokenizer.json", "README.md")} < published


@pytest.mark.parametrize("place", ["checkpoint-{}", "checkpoints/checkpoint-{}"])
def test_a_copy_of_another_run_without_config_and_manifest_is_told_by_its_adapters(tmp_path, place):
    one, other, out = (Run(tmp_path / name) for name in ("one", "other", "out"))
    for step in (0, 5):
        save_adapter(one.path / place.format(step), value=1.0)
        save_adapter(other.path / place.format(step), value=float(step > 0) + 1.0)
    before = contents(copy_run(one, out.path).path)
    save_adapter(one.path / place.format(10))
    assert len(contents(copy_run(one, out.path).path)) == len(before) + 2  # a run that went on is the same run
    with pytest.raises(
        InputError, match=r"checkpoint-5/adapter_model\.safetensors is not that of .*other, so .*out hold"
    ):
        copy_run(other, out.path)
    assert {name: held for name, held in contents(out.path).items() if name in before} == before


def test_full_weights_that_answers_are_sampled_from_are_copied(tmp_path):
    weights = {"weight_change.safetensors", "weight_change.json", "config.json", "model.safetensors", "tokenizer.json"}
    for name in weights:
        write_text(tmp_path / "run/checkpoints/checkpoint-0" / name, "{}")
    copy = copy_run(Run(tmp_path / "run"), tmp_path / "copy")
    assert {file.name for file in copy.checkpoint(0).iterdir()} == weights


def test_a_run_in_the_hub_cache_is_copied_with_what_its_links_point_to(tmp_path):
    blobs, root = tmp_path / "blobs", save_run(tmp_path / "snapshots/abc")
    blobs.mkdir()
    for number, file in enumerate(sorted(entry for entry in root.rglob("*") if entry.is_file())):
        file.rename(blobs / str(number))
        file.symlink_to(os.path.relpath(blobs / str(number), file.parent))
    copy = copy_run(Run(root), tmp_path / "copy")
    assert load_trajectory(copy).steps.tolist() == [0, 5, 10]


def test_a_block_that_fails_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError), write_beside(tmp_path / "new") as part:
        part.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


class RustError(Exception):
    """As safetensors and tokenizers raise."""


@pytest.mark.parametrize(
    "error",
    [
        RustError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RustError("No space left on device (os error 28)"),
        shutil.Error([("a", "b", "[Errno 28] No space left on device: 'a' -> 'b'")]),
        OSError(28, "No space left on device"),
    ],
)
def test_a_full_disk_is_an_oserror_with_its_number_whatever_library_wrote(tmp_path, error):
    with pytest.raises(OSError, match="No space left on device") as raised, write_beside(tmp_path / "file") as part:
        part.touch()
        raise error
    assert raised.value.errno == 28 and list(tmp_path.iterdir()) == []


def test_an_error_of_the_disk_names_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(IsADirectoryError) as raised, write_beside(tmp_path / "file") as part:
        part.mkdir()
        part.write_text("never")
    assert raised.value.filename == str(tmp_path / "file")


@pytest.mark.parametrize("error", [RustError("invalid header"), KeyError("os error"), OSError("no number")])
def test_any_other_error_stays_what_it_is(tmp_path, error):
    with pytest.raises(type(error)) as raised, write_beside(tmp_path / "file"):
        raise error
    assert raised.value is error
