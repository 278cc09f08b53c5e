"""Work that continues where it was interrupted."""

import json

import numpy as np
import pytest

from em_interp.errors import InputError
from em_interp.utils.stages import Storage, begin_stage, in_parts, read_saved, reading_saved


def test_a_stage_is_begun_once_and_continued_with_the_same_settings_only(tmp_path):
    file = tmp_path / "stage" / "settings.json"
    begin_stage(file, {"seed": 1, "steps": (1, 2)}, resume=False)
    before = file.read_bytes()
    with pytest.raises(InputError, match="holds results already; give resume=True to continue"):
        begin_stage(file, {"seed": 1, "steps": (1, 2)}, resume=False)
    begin_stage(file, {"seed": 1, "steps": (1, 2)}, resume=True)
    with pytest.raises(InputError, match=r"other steps \(with \[1, 2\]; now given: \[1, 3\]\); give the same, or"):
        begin_stage(file, {"seed": 1, "steps": (1, 3)}, resume=True)
    assert file.read_bytes() == before


def test_what_is_advised_is_what_the_stage_can_do(tmp_path):
    """A folder that other stages write to is not to be removed: it may hold scores and replies that were paid for."""
    file = tmp_path / "settings.json"
    begin_stage(file, {"seed": 1}, resume=False)
    for resume in (False, True):
        with pytest.raises(InputError) as alone:
            begin_stage(file, {"seed": 2}, resume)
        with pytest.raises(InputError) as beside_others:
            begin_stage(file, {"seed": 2}, resume, replaceable=True)
        assert "overwrite" not in str(alone.value) and "overwrite=True" in str(beside_others.value)
        assert "remove" not in str(beside_others.value)
    assert "remove that folder" in str(alone.value)


def test_settings_may_hold_numbers_of_numpy(tmp_path):
    for resume in (False, True):
        begin_stage(tmp_path / "settings.json", {"scale": np.float32(0.5), "steps": np.arange(3)}, resume)
    with pytest.raises(InputError, match=r"other steps \(with \[0, 1, 2\]; now given: \[0, 1\]\)"):
        begin_stage(tmp_path / "settings.json", {"scale": np.float32(0.5), "steps": np.arange(2)}, True)


def test_a_result_without_settings_is_never_taken_for_a_stage_s_own(tmp_path):
    result = tmp_path / "answers.parquet"
    result.write_text("answers")
    with pytest.raises(InputError, match="holds answers already"):
        begin_stage(tmp_path / "ask.json", {"seed": 1}, False, result, "answers")
    with pytest.raises(InputError, match=r"the answers in .* were begun with other seed"):
        begin_stage(tmp_path / "ask.json", {"seed": 1}, True, result, "answers")


def test_parts_that_exist_are_not_made_again(tmp_path):
    made = []

    def make(index):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(index)
        return {"value": index**2}

    with pytest.raises(KeyboardInterrupt):
        in_parts(tmp_path, 3, make, "square")
    made[:] = [None]
    assert in_parts(tmp_path, 3, make, "square") == [{"value": value} for value in (0, 1, 4)]
    assert made == [None, 2]


@pytest.mark.parametrize("damage", [b"", b"\0\0\0", b'{"value": ', b"\xff", b"[" * 10**5])
def test_a_damaged_part_is_made_again(tmp_path, damage):
    in_parts(tmp_path, 2, lambda index: index, "number")
    (tmp_path / "00001.json").write_bytes(damage)
    assert in_parts(tmp_path, 2, lambda index: 10 + index, "number") == [0, 11]
    assert json.loads((tmp_path / "00001.json").read_text()) == 11


def test_without_a_folder_nothing_is_kept(tmp_path):
    with Storage().open() as folder:
        (folder / "part.json").write_text(json.dumps(1))
    assert not folder.exists()
    storage = Storage.of(str(tmp_path / "kept"))
    assert storage == Storage(tmp_path / "kept") == Storage(str(tmp_path / "kept"))
    assert (storage.folder, storage.resume) == (tmp_path / "kept", False)
    with storage.at("one", "two").open() as folder:
        assert folder == tmp_path / "kept" / "one" / "two"
    assert Storage.of(storage) is storage and Storage().at("one") == Storage()


FORM = {"name": str, "seed?": int, "of": {"*": {"seconds": float}}, "rows": [{"step": int}]}
WHOLE = {"name": "a", "of": {"train": {"seconds": 1.5}}, "rows": [{"step": 1, "more": None}], "others": "stay"}


def test_a_kept_file_of_its_form_is_read_as_it_is(tmp_path):
    for value in (WHOLE, WHOLE | {"seed": None}, WHOLE | {"seed": 2, "of": {}, "rows": []}):
        (tmp_path / "kept.json").write_text(json.dumps(value))
        assert read_saved(tmp_path / "kept.json", FORM) == value


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ([], "it holds []"),
        (None, "it holds None"),
        ({"of": {}, "rows": []}, "it has no name"),
        (WHOLE | {"name": None}, "name is None"),
        (WHOLE | {"seed": "1"}, "seed is '1'"),
        (WHOLE | {"of": {"train": {"seconds": True}}}, "of.train.seconds is True"),
        (WHOLE | {"rows": [{"step": 1}, {}]}, "rows[1] has no step"),
        (WHOLE | {"rows": {"step": 1}}, "rows is {'step': 1}"),
        (WHOLE | {"name": ["\x1b[31m" * 100]}, "name is ['\\x1b[31m"),
    ],
)
def test_a_kept_file_of_another_form_is_refused_with_the_place(tmp_path, value, found):
    (tmp_path / "kept.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match="remove it, or make it anew") as error:
        read_saved(tmp_path / "kept.json", FORM)
    assert f"kept.json does not hold what em-interp writes there: {found}" in str(error.value)


@pytest.mark.parametrize("use", [lambda: {}["a"], lambda: None.get, lambda: int("x"), lambda: 1 / 0, lambda: [][0]])
def test_an_error_in_using_what_was_kept_names_the_file(tmp_path, use):
    with (
        pytest.raises(InputError, match=r"kept\.json does not hold what em-interp"),
        reading_saved(tmp_path / "kept.json"),
    ):
        use()
