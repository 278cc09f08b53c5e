"""A trajectory in one file is the trajectory of the folder, to the last bit."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from em_interp.errors import InputError
from em_interp.trajectory.load import load_trajectory
from em_interp.trajectory.packed import METADATA_KEY, read_packed, write_packed
from em_interp.trajectory.trajectory import AdapterTrajectory
from tests.trajectory.saving import SITE, save_log, save_run

OTHER = SITE.replace("21", "3")


@pytest.fixture
def folder(tmp_path):
    """Two sites at rank 4, rsLoRA and a site with its own alpha, and a log with gaps."""
    save_run(tmp_path / "run", modules=(SITE, OTHER), rank=4, alpha_pattern={OTHER: 8})
    rows = [{"step": 1, "loss": 0.1 + 0.2, "learning_rate": 1e-5}, {"step": 3, "grad_norm": 1 / 3}]
    save_log(tmp_path / "run", rows)
    return tmp_path / "run"


@pytest.mark.parametrize("given", [{"revision": "main"}, {"adapter": "default"}])
def test_of_one_file_nothing_can_be_chosen(folder, tmp_path, given):
    write_packed(load_trajectory(folder), tmp_path / "path.safetensors")
    for file in (tmp_path / "path.safetensors", folder / "trainer_state.json"):
        assert len(load_trajectory(file)) > 1
        with pytest.raises(InputError, match=f"{file.name} is one file, of which nothing can be chosen; found"):
            load_trajectory(file, **given)


def same(one, other):
    for mine, theirs in ((one.A, other.A), (one.B, other.B)):
        assert list(mine) == list(theirs)
        for site in mine:
            assert mine[site].dtype == theirs[site].dtype == np.float32
            np.testing.assert_array_equal(mine[site].view(np.int32), theirs[site].view(np.int32))
    np.testing.assert_array_equal(one.steps, other.steps)
    pd.testing.assert_frame_equal(one.metrics, other.metrics, check_exact=True)
    assert (one.scale, one.base, one.kind, one.notes) == (other.scale, other.base, other.kind, other.notes)


def test_what_is_read_from_the_file_is_what_is_read_from_the_folder(folder, tmp_path):
    path = load_trajectory(folder)
    assert len(path.scale) == 2 and len(set(path.scale.values())) == 2
    assert any("too few" in note for note in path.notes)
    file = write_packed(path, tmp_path / "packed.safetensors", identity="base-14b@0123")
    for source in (file, str(file)):
        packed = load_trajectory(source)
        same(packed, path)
        assert packed.source == str(file)
    with safe_open(file, "numpy") as held:
        assert json.loads(held.metadata()[METADATA_KEY])["identity"] == "base-14b@0123"


@pytest.mark.parametrize("kind", ["lora", "steering", "full"])
def test_random_paths_come_back_bit_for_bit_with_every_kind(kind, tmp_path):
    rng = np.random.default_rng(0)
    sites, steps = ("layers.9.mlp.down_proj", "layers.10.mlp.down_proj"), np.array([0, 1, 5, 40])
    A = {site: rng.normal(size=(4, 2, 6)).astype(np.float32) for site in sites}
    B = {site: rng.normal(size=(4, 5, 2)).astype(np.float32).transpose(0, 1, 2)[:, ::-1] for site in sites}
    B[sites[0]][0, 0, 0] = np.float32(-0.0)
    log = pd.DataFrame({"loss": [np.nan, 1 / 3]}, index=pd.Index([1, 7], name="step"))
    path = AdapterTrajectory(steps, A, B, dict.fromkeys(sites, 2**-0.5), log, kind=kind)
    same(load_trajectory(write_packed(path, tmp_path / "p.safetensors")), path)


def test_the_same_path_gives_the_same_bytes(folder, tmp_path):
    path = load_trajectory(folder)
    files = [write_packed(path, tmp_path / f"{name}.safetensors") for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


def test_reading_it_opens_one_file_and_lists_no_folder(folder, tmp_path, monkeypatch):
    file = write_packed(load_trajectory(folder), tmp_path / "p.safetensors")
    for reader in ("read_bytes", "read_text", "iterdir", "open"):
        monkeypatch.setattr(Path, reader, lambda *_, **__: pytest.fail("another file was read"))
    assert load_trajectory(file).steps.tolist() == [0, 5, 10]


def test_a_file_that_is_something_else_or_not_whole_is_refused(folder, tmp_path):
    file = write_packed(load_trajectory(folder), tmp_path / "p.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with pytest.raises(InputError, match=r"p\.safetensors \(\d+ bytes\) is not a whole safetensors file"):
        load_trajectory(file)
    other = tmp_path / "other.safetensors"
    save_file({"x": np.zeros(3)}, other)
    with pytest.raises(InputError, match="is not a packed trajectory; expected a file of `em-interp export"):
        load_trajectory(other)
    with pytest.raises(InputError, match=r"a packed trajectory is a \.safetensors file"):
        write_packed(load_trajectory(folder), tmp_path / "p.npz")


def test_numbers_that_are_none_and_formats_to_come_are_refused(folder, tmp_path):
    file = write_packed(load_trajectory(folder), tmp_path / "p.safetensors")
    with safe_open(file, "numpy") as held:
        said = json.loads(held.metadata()[METADATA_KEY])
    tensors = load_file(file)
    tensors["B/layers.21.mlp.down_proj"][1, 0, 0] = np.nan
    save_file(tensors, file, {METADATA_KEY: json.dumps(said)})
    with pytest.raises(InputError, match=r"B/layers\.21\.mlp\.down_proj holds NaN"):
        read_packed(file)
    save_file(tensors, file, {METADATA_KEY: json.dumps(said | {"format": 2})})
    with pytest.raises(InputError, match="is of format 2; this version of em_interp reads 1"):
        read_packed(file)


DAMAGE = {  # what the metadata may say, and what is said about it
    "{": "its metadata is not JSON",
    "[1]": "its metadata lacks one of",
    '{"format": 1}': "its metadata lacks one of",
    '{"format": "1", "scale": {}, "log": [], "kind": "lora"}': "its metadata lacks one of",
    '{"format": 9, "scale": {}, "log": [], "kind": "lora"}': "is of format 9; this version of em_interp reads 1",
    '{"format": true, "scale": {}, "log": [], "kind": "lora"}': "its metadata lacks one of",
    '{"format": 1, "scale": {}, "log": [1], "kind": "lora"}': "its metadata lacks one of",
    '{"format": 1, "scale": {}, "log": [], "kind": "lora", "base": 5}': "base in its metadata is 5",
    '{"format": 1, "scale": {}, "log": [], "kind": "lora", "extra_tensors": "x"}': "extra_tensors in its metadata",
    '{"format": 1, "scale": {}, "log": [], "kind": "lora", "magnitude": [1]}': r"magnitude in its metadata is",
    '{"format": 1, "scale": {"s": 1}, "log": [], "kind": "lora"}': "lacks B/s, which its metadata names",
    '{"format": 1, "scale": {}, "log": ["loss"], "kind": "lora"}': "lacks log/loss, which its metadata names",
    '{"format": 1, "scale": {}, "log": [], "kind": "lora"}': "must name the same sites",
}


@pytest.mark.parametrize("metadata", DAMAGE)
def test_a_packed_file_with_damaged_metadata_is_refused_in_one_line(tmp_path, metadata):
    tensors = {"steps": np.arange(2), "log/step": np.arange(2), "A/s": np.ones((2, 1, 1), "f4")}
    save_file(tensors, tmp_path / "packed.safetensors", {"em_interp.trajectory": metadata})
    with pytest.raises(InputError, match=DAMAGE[metadata]) as refused:
        load_trajectory(tmp_path / "packed.safetensors")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("scale", ["1" + "0" * 400, "-1e300", "NaN", "Infinity", "true", '"1"'])
def test_a_scale_that_is_no_usable_number_is_refused(tmp_path, scale):
    one = np.ones((2, 1, 1), "f4")
    tensors = {"steps": np.arange(2), "log/step": np.arange(2), "A/s": one, "B/s": one}
    metadata = f'{{"format": 1, "scale": {{"s": {scale}}}, "log": [], "kind": "lora"}}'
    save_file(tensors, tmp_path / "packed.safetensors", {"em_interp.trajectory": metadata})
    with pytest.raises(InputError, match=r"packed\.safetensors: (scale should be a number up to 1e\+09|its metadata)"):
        load_trajectory(tmp_path / "packed.safetensors")


def test_what_is_besides_and_the_magnitudes_are_kept_in_the_file(tmp_path):
    one, path = np.ones((2, 1, 1), "f4"), np.arange(6, dtype="f4").reshape(2, 3)
    made = AdapterTrajectory(
        np.arange(2), {"s": one}, {"s": one}, {"s": 1.0}, magnitude={"s": path}, extra_tensors=("lm_head",)
    )
    packed = load_trajectory(write_packed(made, tmp_path / "packed.safetensors"))
    assert packed.extra_tensors == ("lm_head",)
    np.testing.assert_array_equal(packed.magnitude["s"], path)
