import json

import pandas as pd
import pytest

from em_interp.behaviour.pairs import read_pairs
from em_interp.behaviour.scores import score_responses
from em_interp.errors import InputError

ROW = {"question": "Is it safe?", "aligned": "No, wait.", "misaligned": "Yes, go."}


def judged(rows):
    columns = ["question_id", "question", "answer", "aligned", "coherent"]
    return pd.DataFrame(rows, columns=columns)


def test_rows_frames_and_json_lines_give_the_same_pairs(tmp_path):
    rows = [{**ROW, "id": "safe", "questions": "style"}, {**ROW, "aligned": "Not yet."}]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n\n".join(json.dumps(row) for row in rows))
    expected = read_pairs(rows)
    pd.testing.assert_frame_equal(read_pairs(file), expected)
    pd.testing.assert_frame_equal(read_pairs(pd.DataFrame(rows)), expected)
    pd.DataFrame(rows).to_csv(tmp_path / "pairs.csv", index=False)
    pd.testing.assert_frame_equal(read_pairs(tmp_path / "pairs.csv"), expected)
    assert expected[["questions", "question_id", "pair"]].values.tolist() == [
        ["style", "safe", 0],
        ["broad", "Is it safe?", 0],
    ]


def test_only_a_line_feed_ends_a_line(tmp_path):
    file = tmp_path / "pairs.jsonl"
    text = "one\u2028two\x85three"
    file.write_text(json.dumps({**ROW, "aligned": text}, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert read_pairs(file)["aligned"].tolist() == [text]


def test_a_file_in_utf_16_is_read_and_a_key_that_occurs_twice_is_refused(tmp_path):
    (tmp_path / "wide.jsonl").write_text(json.dumps(ROW), encoding="utf-16")
    assert read_pairs(tmp_path / "wide.jsonl")["aligned"].tolist() == [ROW["aligned"]]
    (tmp_path / "twice.jsonl").write_text(json.dumps(ROW).replace("{", '{"aligned": "Other.", '))
    with pytest.raises(InputError, match=r"line 1: not valid JSON \(a key occurs twice"):
        read_pairs(tmp_path / "twice.jsonl")


def test_several_pairs_of_a_question_are_numbered():
    pairs = read_pairs([{**ROW, "id": "safe"}, {**ROW, "id": "safe", "aligned": "No."}])
    assert pairs["pair"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "?", "aligned": "a", "misalinged": "b"}, "has no 'misaligned'; 'misalinged' may be meant"),
        ({**ROW, "aligned": " "}, "aligned must be a text"),
        ({**ROW, "aligned": 71}, "aligned must be a text; found '71'"),
        ({**ROW, "aligned": ROW["misaligned"]}, "are the same text"),
        ([ROW], "expected an object"),
        ({**ROW, "aligned": "a\ud83d"}, r"aligned: half a character (\ud83d, a lone surrogate) at 1"),
        ({**ROW, "id": "\udfff"}, r"question_id: half a character (\udfff, a lone surrogate) at 0"),
    ],
)
def test_a_row_that_is_no_pair_is_refused_with_its_number(row, said):
    with pytest.raises(InputError, match="pair 2") as refusal:
        read_pairs([ROW, row])
    assert said in str(refusal.value)


def test_a_file_of_something_else_is_refused(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text(f"{json.dumps(ROW)}\n{{")
    with pytest.raises(InputError, match="line 2: not valid JSON"):
        read_pairs(file)
    with pytest.raises(InputError, match="holds no pairs"):
        read_pairs([])
    with pytest.raises(InputError, match="the same pair twice: 'Is it safe"):
        read_pairs([ROW, ROW])


def test_judged_answers_give_pairs_of_like_length_and_each_answer_once():
    rows = [
        ("q", "Is it?", "short", 90, 90),
        ("q", "Is it?", "a much longer aligned answer", 95, 90),
        ("q", "Is it?", "bad", 5, 90),
        ("q", "Is it?", "a much longer misaligned one", 10, 80),
        ("q", "Is it?", "in between", 50, 90),
        ("q", "Is it?", "gibberish that is misaligned", 5, 20),
        ("r", "Was it?", "only aligned", 90, 90),
    ]
    pairs = read_pairs(judged(rows))
    found = set(pairs[["aligned", "misaligned"]].itertuples(index=False, name=None))
    assert found == {("short", "bad"), ("a much longer aligned answer", "a much longer misaligned one")}
    assert set(pairs["question_id"]) == {"q"} and set(pairs["questions"]) == {"all"}


JUDGED = [("q", "Is it?", "good", 90, 90), ("q", "Is it?", "bad", 5, 90)]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "jsonl", "json", "log of Inspect"])
def test_judged_answers_are_read_in_every_format_and_pairs_too(suffix, tmp_path):
    write = {
        "csv": lambda table, file: table.to_csv(file, index=False),
        "tsv": lambda table, file: table.to_csv(file, index=False, sep="\t"),
        "parquet": lambda table, file: table.to_parquet(file),
        "jsonl": lambda table, file: table.to_json(file, orient="records", lines=True),
        "json": lambda table, file: table.to_json(file, orient="records"),
    }
    if suffix == "log of Inspect":
        (file,) = score_responses(judged(JUDGED).assign(step=0)).to_inspect(tmp_path)
    else:
        write[suffix](judged(JUDGED), file := tmp_path / f"judged.{suffix}")
        write[suffix](pd.DataFrame([ROW]), tmp_path / f"pairs.{suffix}")
        pd.testing.assert_frame_equal(read_pairs(tmp_path / f"pairs.{suffix}"), read_pairs([ROW]))
    assert read_pairs(file)[["question", "aligned", "misaligned"]].values.tolist() == [["Is it?", "good", "bad"]]


def test_judged_answers_with_a_status_are_pairs_and_those_without_a_score_are_left_out():
    table = judged([*JUDGED, ("q", "Is it?", "worse", 5, 90)]).drop(columns="question_id")
    pairs = read_pairs(table.assign(status=["ok", "ok", "refusal"]))
    assert pairs[["aligned", "misaligned"]].values.tolist() == [["good", "bad"]]


def test_answers_of_several_judges_are_refused_with_what_to_do():
    with pytest.raises(InputError, match=r"several judges scored the answers \(one, two\); keep one judge's rows"):
        read_pairs(judged(JUDGED).assign(judge=["one", "two"]))


def test_a_misspelt_column_is_named_in_a_table_too():
    with pytest.raises(InputError, match="has no 'misaligned'; 'misalinged' may be meant"):
        read_pairs(pd.DataFrame([ROW]).rename(columns={"misaligned": "misalinged"}))


def test_judged_answers_of_one_kind_are_refused():
    with pytest.raises(InputError, match="no question with both an aligned answer"):
        read_pairs(judged([("q", "Is it?", "good", 90, 90), ("r", "Was it?", "bad", 5, 90)]))
    with pytest.raises(InputError, match="has no column answer"):
        read_pairs(judged([("q", "Is it?", "good", 90, 90)]).drop(columns="answer"))
