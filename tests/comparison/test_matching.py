"""Which runs can be compared, what they are called, and which of them share their start."""

import dataclasses

import pytest

import em_interp as em
from em_interp.comparison.matching import names_of
from em_interp.errors import InputError
from em_interp.training.export import export_packed
from em_interp.utils.files import write_json
from tests.comparison.planting import SITE, adapter
from tests.figures.planting import plant_run


def test_runs_of_one_name_in_different_folders_are_told_apart(tmp_path):
    paths = [adapter(k, name=f"{tmp_path}/{folder}/run") for k, folder in enumerate(("a", "b"))]
    assert em.compare(paths, permutations=9).names == ("a/run", "b/run")


@pytest.mark.parametrize(
    "given, names",
    [
        (("runs/a", "runs/b"), ("a", "b")),
        (("a/seed0/run", "a/seed1/run"), ("seed0/run", "seed1/run")),
        (("x/a/run", "y/a/run", "y/b/run"), ("x/a/run", "y/a/run", "b/run")),
        (("org/name", "org/other"), ("name", "other")),
        (("a/run", "a/run", "a/run"), ("a/run", "a/run #2", "a/run #3")),
        (("", ""), ("run 1", "run 2")),
    ],
)
def test_a_run_is_called_by_the_shortest_end_of_its_path_that_no_other_has(given, names):
    assert names_of([dataclasses.replace(adapter(k), source=name) for k, name in enumerate(given)]) == names


def test_the_run_that_one_is_in_is_called_by_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert names_of([dataclasses.replace(adapter(k), source=name) for k, name in enumerate((".", "other"))]) == (
        tmp_path.name,
        "other",
    )


def test_a_mapping_names_the_runs():
    found = em.compare({"medical advice": adapter(1), "control": adapter(2)}, permutations=9)
    assert found.names == ("medical advice", "control")
    assert set(found.pairs["run"]) == {"medical advice"}


def test_runs_with_the_same_A_at_step_0_are_named_wherever_a_cosine_of_A_is_printed():
    organism, other = adapter(1, name="organism"), adapter(3, name="other")
    control = dataclasses.replace(adapter(2, name="control"), A={SITE: organism.A[SITE]})
    found = em.compare([organism, control, other], permutations=9)
    assert found.same_start() == [("organism", "control")]
    assert found.to_dict()["same_start"] == [["organism", "control"]]
    shared = "organism and control: they start from the same A at step 0"
    assert shared in found.sentence()
    for figure in (found.plot("pairs"), found.plot("steps", "A"), found.plot("direction_onset", "delta")):
        assert shared in figure.layout.meta["subtitle"]
    assert shared not in found.plot("steps", "B").layout.meta["subtitle"]
    third = dataclasses.replace(other, A={SITE: organism.A[SITE]})
    lines = em.compare([organism, control, third], permutations=9).sentence().splitlines()
    assert [line.split(":")[0] for line in lines if "they start from" in line] == ["organism, control and other"]
    rows = found.pairs.query("measure == 'A'").set_index(["run", "other"])["same_start"]
    assert rows.to_dict() == {("organism", "control"): True, ("organism", "other"): False, ("control", "other"): False}
    later = dataclasses.replace(control, steps=control.steps + 1)  # not saved at step 0: the start is not known
    assert em.compare([organism, later], permutations=9).same_start() == []
    vectors = [dataclasses.replace(run, kind="steering") for run in (organism, control)]  # whose A is 1 in every run
    assert em.compare(vectors, permutations=9).same_start() == []


def test_other_dimensions_are_refused_in_one_line_that_says_why():
    with pytest.raises(InputError) as refusal:
        em.compare([adapter(1, base="qwen"), adapter(2, d_out=41, base="llama")])
    said = str(refusal.value)
    assert f"ΔW of {SITE} is 40 × 24 in seed1 and 41 × 24 in seed2 (bases: qwen, llama)" in said
    assert "raw cosines across bases mean nothing" in said
    assert "\n" not in said


def test_another_base_of_the_same_dimensions_is_refused_unless_the_caller_vouches_for_it():
    runs = [adapter(1, base="Qwen/Qwen2.5"), adapter(2, base="meta/llama")]
    with pytest.raises(InputError, match=r"trained on Qwen/Qwen2.5 and seed2 on meta/llama; raw cosines across bases"):
        em.compare(runs)
    assert len(em.compare(runs, same_base=True, permutations=9).pairs)
    assert len(em.compare([adapter(1, base=None), adapter(2)], permutations=9).pairs)  # not known to differ


def test_a_base_is_known_by_its_identity_where_the_manifests_have_one(tmp_path):
    runs = [plant_run(tmp_path / name, seed=k, asked=False) for k, name in enumerate(("one", "two"))]
    for run, identity in zip(runs, ("5eed" * 8, "f00d" * 8), strict=True):
        write_json(run.manifest_file, {"base": {"name": "tiny-qwen2", "identity": identity}})
    with pytest.raises(InputError, match=r"one has tiny-qwen2 \(5eed5eed5eed\) and two tiny-qwen2 \(f00df00df00d\)"):
        em.compare(runs)
    with pytest.raises(InputError, match="5eed5eed5eed"):
        em.compare([run.checkpoints for run in runs])
    for run, name in zip(runs, ("tiny-qwen2", "renamed"), strict=True):
        write_json(run.manifest_file, {"base": {"name": name, "identity": f"{name}@5eed"}})
    assert len(em.compare(runs, permutations=9).pairs)


def test_packed_files_and_loaded_paths_are_told_by_the_same_identity_as_their_folders(tmp_path):
    runs = [plant_run(tmp_path / name, seed=k, asked=False) for k, name in enumerate(("one", "two", "three"))]
    for run, identity in zip(runs, ("tiny-qwen2@5eed0", "renamed@5eed0", "tiny-qwen2@f00d0"), strict=True):
        write_json(run.manifest_file, {"base": {"name": "tiny-qwen2", "identity": identity}})
    packed = [tmp_path / f"{run.path.name}.safetensors" for run in runs]
    for run, file in zip(runs, packed, strict=True):
        export_packed(run.path, file)
    loaded = [em.load_trajectory(run) for run in runs]
    for one, two, three in (runs, packed, loaded, [runs[0], packed[1], loaded[2]]):
        assert len(em.compare([one, two], permutations=9).pairs)
        with pytest.raises(InputError, match=r"has tiny-qwen2 \(5eed0\) and .*three.* tiny-qwen2 \(f00d0\); raw"):
            em.compare([one, two, three])


def test_every_two_runs_are_compared_by_their_bases_not_only_with_the_first(tmp_path):
    with pytest.raises(InputError, match="seed2 was trained on qwen and seed3 on llama"):
        em.compare([adapter(1, base=None), adapter(2, base="qwen"), adapter(3, base="llama")])


def test_what_is_no_comparison_is_refused():
    few = "of two runs or more; {} was given"
    for runs, message in (
        ([], few.format("none")),
        ([adapter(1)], few.format("one")),
        (adapter(1), few.format("one")),
        ("a", few.format("one")),
    ):
        with pytest.raises(InputError, match=message):
            em.compare(runs)
    with pytest.raises(InputError, match=r"no site is adapted by every run.*layers\.9"):
        em.compare([adapter(1), adapter(2, sites=("layers.9.mlp.down_proj",))])
    with pytest.raises(InputError, match=r"level must lie between 0 and 1, such as 0.95; it is 2"):
        em.compare([adapter(1), adapter(2)], level=2)
