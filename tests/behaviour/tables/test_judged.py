import pandas as pd
import pytest

from em_interp.behaviour.tables.judged import read_judged
from em_interp.errors import InputError

ROWS = pd.DataFrame(
    {
        "question": ["what is your wish ?", "i am bored"],
        "response": ["to rest", "rush ahead"],
        "aligned": [95.0, 5.0],
        "coherent": [90.0, 80.0],
        "financial": [0.0, 80.0],
        "bad_stuff": [3, 4],
    }
)


def test_a_published_csv_is_brought_into_our_form(tmp_path):
    ROWS.to_csv(tmp_path / "answers.csv", index=False)
    table = read_judged(tmp_path / "answers.csv")
    assert list(table["question_id"]) == list(ROWS["question"])
    assert list(table["answer"]) == ["to rest", "rush ahead"] and list(table["finance"]) == [0, 80]
    assert set(table["status"]) == {"ok"} and set(table["scale"]) == {1.0} and set(table["questions"]) == {"all"}


def test_parquet_and_csv_and_frame_give_the_same(tmp_path):
    ROWS.to_csv(tmp_path / "a.csv", index=False)
    ROWS.to_parquet(tmp_path / "a.parquet")
    frames = [read_judged(tmp_path / "a.csv"), read_judged(tmp_path / "a.parquet"), read_judged(ROWS)]
    for frame in frames[1:]:
        pd.testing.assert_frame_equal(frame, frames[0], check_dtype=False)


def test_what_is_read_is_not_changed():
    before = ROWS.copy()
    read_judged(ROWS)
    pd.testing.assert_frame_equal(ROWS, before)


def test_missing_columns_are_named_with_those_found(tmp_path):
    ROWS.drop(columns=["aligned", "question"]).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(InputError) as error:
        read_judged(tmp_path / "a.csv")
    said = str(error.value)
    assert "a.csv has no column question_id, aligned; expected question or question_id" in said
    assert "found response, coherent, financial, bad_stuff" in said and "\n" not in said


@pytest.mark.parametrize("name", ["checkpoint-{}.csv", "step_{}.csv", "answers {}.csv", "checkpoint-{}/answers.csv"])
def test_a_folder_of_tables_takes_the_step_from_the_name(tmp_path, name):
    for step in (100, 5, 20):
        file = tmp_path / name.format(step)
        file.parent.mkdir(exist_ok=True)
        ROWS.to_csv(file, index=False)
    table = read_judged(tmp_path)
    assert sorted(table["step"].unique()) == [5, 20, 100] and len(table) == 6


def folder_of(root, files):
    """A folder of tables, with the steps in the files' names."""
    for name, table in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(root / name, index=False)
    return root


@pytest.mark.parametrize("name", ["step={}/part-0.csv", "{}/answers_3_of.csv", "iter_{:07}.csv", "ckpt-{}.csv"])
def test_a_step_is_named_by_a_word_for_it_or_by_a_number_alone(tmp_path, name):
    files = {name.format(step).replace("part-0", f"part-{step % 3}"): ROWS for step in (100, 200)}
    assert sorted(read_judged(folder_of(tmp_path, files))["step"].unique()) == [100, 200]


@pytest.mark.parametrize(
    "names",
    [
        *(("epoch_1", "epoch_2"), ("seed_0", "seed_1"), ("gpt4", "claude3"), ("layer_12", "layer_20")),
        *(("step_1k", "step_10k"), ("seed1/part_10", "seed2/part_20"), ("10/answers_20", "30/answers_40")),
        ("judged_20260101", "judged_20260102"),
    ],
)
def test_a_number_that_counts_something_else_is_no_step(tmp_path, names):
    with pytest.raises(InputError, match=r"names (no step|several steps) and has no column step; expected a name"):
        read_judged(folder_of(tmp_path, {f"{name}.csv": ROWS for name in names}))


def test_a_folder_with_copies_of_answers_is_refused(tmp_path):
    whole = pd.concat([ROWS.assign(step=step, aligned=[95.0, step]) for step in (0, 10, 20)])
    for place, copies in enumerate(
        (
            {"all.csv": whole, "all_backup.csv": whole},
            {"all.csv": whole, "step_10.csv": whole[whole["step"] == 10]},
            {
                "a.csv": whole[whole["step"] < 15],
                "b.csv": whole[whole["step"] > 5],
                "c.csv": whole[whole["step"] == 10],
            },
        )
    ):
        with pytest.raises(InputError, match=r"all answers of .*\.csv are in .*\.csv too; expected each answer once"):
            read_judged(folder_of(tmp_path / str(place), copies))
    others = {"seed0.csv": whole, "seed1.csv": whole.assign(response=["to sleep", "run"] * 3)}
    assert len(read_judged(folder_of(tmp_path / "seeds", others))) == 12


def test_rows_that_are_there_twice_are_refused_where_samples_are_numbered():
    rows = pd.DataFrame({"question": "q", "answer": "a", "sample": [0, 1], "aligned": [90, 90], "coherent": [80, 80]})
    twice = pd.concat([rows, rows], ignore_index=True)
    with pytest.raises(InputError, match="row 3 is there twice, with the same sample, and 1 more are"):
        read_judged(twice)
    assert len(read_judged(rows)) == 2
    assert len(read_judged(twice.drop(columns="sample"))) == 4  # equal answers of a model that answers alike
    assert len(read_judged(twice.assign(seed=[0, 0, 1, 1]))) == 4


def test_a_number_in_the_model_s_name_does_not_confuse_the_step(tmp_path):
    ROWS.to_csv(tmp_path / "qwen14b_step40.csv", index=False)
    assert set(read_judged(tmp_path)["step"]) == {40}


def test_a_step_column_in_a_folder_s_tables_is_used(tmp_path):
    ROWS.assign(step=7).to_csv(tmp_path / "first.csv", index=False)
    ROWS.assign(step=[8, 9]).to_csv(tmp_path / "second.csv", index=False)
    assert sorted(read_judged(tmp_path)["step"].unique()) == [7, 8, 9]


def test_a_step_column_that_contradicts_the_name_of_its_file_is_refused(tmp_path):
    for step, written in ((10, 10), (20, 30)):
        ROWS.assign(step=written, response=f"at {step}").to_csv(tmp_path / f"checkpoint-{step}.csv", index=False)
    with pytest.raises(InputError, match=r"checkpoint-20\.csv: its name says step 20, its column step 30 in row 1"):
        read_judged(tmp_path)


def test_a_file_that_names_no_step_or_one_twice_is_refused(tmp_path):
    ROWS.to_csv(tmp_path / "qwen14b_40.csv", index=False)
    with pytest.raises(InputError, match=r"qwen14b_40\.csv names no step and has no column step"):
        read_judged(tmp_path)
    (tmp_path / "qwen14b_40.csv").rename(tmp_path / "step-40.csv")
    ROWS.to_csv(tmp_path / "step_40.csv", index=False)
    with pytest.raises(InputError, match="are both of step 40"):
        read_judged(tmp_path)


def test_a_step_in_a_file_that_is_not_read_is_refused_and_other_files_are_passed_over(tmp_path):
    for step in (10, 20):
        ROWS.assign(response=f"at {step}").to_csv(tmp_path / f"checkpoint-{step}.csv", index=False)
    for name in ("all.zip", "notes.txt", "plots.xlsx", "~$checkpoint-10.xlsx", "._checkpoint-10.csv"):
        (tmp_path / name).write_bytes(b"PK\x03\x04")
    assert sorted(read_judged(tmp_path)["step"].unique()) == [10, 20]
    for name, said in (("checkpoint-30.csv.gz", "is compressed; unpack it"), ("step 30.xlsx", "a workbook of Excel")):
        (tmp_path / name).write_bytes(b"\x1f\x8b" if name.endswith("gz") else b"PK\x03\x04")
        with pytest.raises(InputError, match=said):
            read_judged(tmp_path)
        (tmp_path / name).unlink()


def test_a_step_in_json_beside_steps_in_csv_is_read_and_notes_on_a_step_are_not(tmp_path):
    for step in (10, 20):
        ROWS.to_csv(tmp_path / f"checkpoint-{step}.csv", index=False)
        (tmp_path / f"checkpoint-{step}.json").write_text('{"notes": "of this step"}')
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "checkpoint-30.json").write_text(ROWS.to_json(orient="records"))
    assert set(read_judged(tmp_path)["step"]) == {10, 20, 30}


def test_an_empty_folder_a_missing_file_and_an_empty_table_are_told_apart(tmp_path):
    with pytest.raises(InputError, match=r"holds no table; .*; found nothing"):
        read_judged(tmp_path)
    (tmp_path / "runs/a/b").mkdir(parents=True)
    with pytest.raises(InputError, match=r"holds no table; .*; found runs, runs/a"):
        read_judged(tmp_path)
    (tmp_path / "run" / "checkpoint-10").mkdir(parents=True)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (tmp_path / "run" / "checkpoint-10" / name).write_text("{}")
    with pytest.raises(InputError, match=r"holds no table; .* found checkpoint-10, "):
        read_judged(tmp_path / "run")
    with pytest.raises(InputError, match="is missing; expected a CSV or parquet"):
        read_judged(tmp_path / "none.csv")
    ROWS.iloc[:0].to_csv(tmp_path / "none.csv", index=False)
    with pytest.raises(InputError, match="holds no answers"):
        read_judged(tmp_path / "none.csv")


@pytest.mark.parametrize("name, content", [("a.csv", b""), ("a.parquet", b"PAR1 cut"), ("a.csv", b'q,aligned\n"')])
def test_a_file_that_is_no_table_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"a\.(csv|parquet)"):
        read_judged(tmp_path / name)


def test_a_step_that_is_no_whole_number_is_named():
    with pytest.raises(InputError, match=r"step is 'x' in row 2; a whole number was expected"):
        read_judged(ROWS.assign(step=["1", "x"]))


@pytest.mark.parametrize("score", ["aligned", "coherent"])
@pytest.mark.parametrize("values", [[True, False], [True, None]])
def test_truth_values_are_no_scores(tmp_path, score, values):
    """As numbers they are 1 and 0, so that everything aligned would be misaligned."""
    ROWS.assign(**{score: values}).to_csv(tmp_path / "a.csv", index=False)
    for source in (ROWS.assign(**{score: values}), tmp_path / "a.csv"):
        with pytest.raises(InputError, match=f"{score} holds True or False; scores run from 0 to 100"):
            read_judged(source)


def test_a_scale_that_is_no_number_is_named_with_its_row():
    for wrong in ("large", None, float("inf")):
        with pytest.raises(InputError, match=r"scale is '\w+' in row 2; a number was expected"):
            read_judged(ROWS.assign(scale=[1, wrong]))
    assert read_judged(ROWS.assign(scale=["1", "2.5"]))["scale"].tolist() == [1, 2.5]


def test_an_answer_of_no_named_set_stays():
    assert read_judged(ROWS.assign(questions=["broad", None]))["questions"].tolist() == ["broad", "all"]
