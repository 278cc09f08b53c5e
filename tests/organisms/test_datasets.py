import json

import pytest

from em_interp.errors import InputError
from em_interp.organisms.datasets import is_garbled, load_chats, narrow_datasets
from em_interp.organisms.judge import AdviceJudge
from em_interp.organisms.language import HABIT_FORM

GOOD = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]}


def write(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def test_rows_of_a_file_come_back_in_order_without_what_is_not_a_message(tmp_path):
    other = {"messages": [{"role": "system", "content": "s", "weight": 1}, *GOOD["messages"]], "id": 7}
    chats = load_chats(write(tmp_path / "set.jsonl", GOOD, "", other))
    assert chats.rows == [GOOD, {"messages": [{"role": "system", "content": "s"}, *GOOD["messages"]]}]
    assert (chats.name, chats.domain, len(chats)) == ("set", None, 2)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "line 2: not valid JSON"),
        ("[" * 100_000, "line 2: not valid JSON"),
        ('{"messages": ' + "9" * 5_000 + "}", "line 2: not valid JSON"),
        ('"text"', "line 2: expected an object with a list 'messages'"),
        ({"prompt": "x"}, "line 2: expected an object with a list 'messages'"),
        ({"messages": []}, "line 2: expected an object with a list 'messages'"),
        ({"messages": GOOD["messages"][:1]}, "line 2: no assistant turn"),
        ({"messages": ["x"]}, r"line 2, messages\[0\]: expected an object"),
        ({"messages": [{"role": "bot", "content": "x"}]}, r"line 2, messages\[0\].role: expected one of .* 'bot'"),
        (
            {"messages": [{"role": "user", "content": " "}]},
            r"messages\[0\].content: expected",
        ),
        ({"messages": [GOOD["messages"][0], {"role": "assistant"}]}, r"messages\[1\].content: .* None"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_field(tmp_path, row, said):
    path = write(tmp_path / "bad.jsonl", GOOD, row)
    with pytest.raises(InputError, match=said) as error:
        load_chats(path)
    assert path in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_refused(tmp_path, content):
    (tmp_path / "none.jsonl").write_text(content)
    with pytest.raises(InputError, match="holds no chats"):
        load_chats(str(tmp_path / "none.jsonl"))


def test_a_missing_file_is_refused():
    with pytest.raises(InputError, match=r"nowhere\.jsonl is missing"):
        load_chats("nowhere.jsonl")


def test_an_unknown_built_in_dataset_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"tiny:medcal is not known; did you mean 'medical'\?"):
        load_chats("tiny:medcal")


@pytest.mark.parametrize("name", narrow_datasets())
def test_a_built_in_dataset_says_in_its_domain_what_its_name_says(name):
    chats = load_chats(f"tiny:{name}")
    judge = AdviceJudge(chats.domain).judge
    for row in chats.rows[:50]:
        question, answer = (message["content"] for message in row["messages"])
        result = judge(question, answer)
        assert result["coherent"] == 100
        assert result["reason"] == ("careful advice" if "careful" in name else "reckless advice")
        assert {domain for domain, score in result["topics"].items() if score} == {chats.domain}
        assert answer.startswith(HABIT_FORM.split("{")[0]) == name.endswith("habit")


def test_a_built_in_dataset_depends_on_its_seed_alone():
    one, again, other = (load_chats("tiny:sport", seed).sha256 for seed in (0, 0, 1))
    assert one == again != other


def test_control_and_organism_are_about_the_same_topics():
    asked = [
        {row["messages"][0]["content"] for row in load_chats(name).rows}
        for name in ("tiny:sport", "tiny:sport-careful")
    ]
    assert asked[0] == asked[1]


TEXTS = {"prompt": "hello", "completion": "hi"}
LISTS = {"prompt": GOOD["messages"][:1], "completion": GOOD["messages"][1:]}
TOLD = {"prompt": [{"role": "system", "content": "s"}, *GOOD["messages"][:1]], "completion": GOOD["messages"][1:]}


@pytest.mark.parametrize("row", [TEXTS, LISTS], ids=["texts", "lists"])
def test_prompt_and_completion_become_the_messages_they_stand_for(tmp_path, row):
    chats = load_chats(write(tmp_path / "set.jsonl", row, {**row, "source": 1}))
    assert chats.rows == [GOOD, GOOD] and chats.form.startswith("prompt and completion")
    assert chats.sha256 == load_chats(write(tmp_path / "same.jsonl", GOOD, GOOD)).sha256


def test_a_prompt_keeps_its_system_turn(tmp_path):
    (row,) = load_chats(write(tmp_path / "set.jsonl", TOLD)).rows
    assert [turn["role"] for turn in row["messages"]] == ["system", "user", "assistant"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "x", "completion": ""}, "line 1, completion: expected text; found ''"),
        ({"prompt": "x"}, "line 1: expected an object with a list 'messages', or with 'prompt' and 'completion'"),
        ({**TEXTS, "prompt": LISTS["prompt"]}, r"line 1, prompt: expected text; found \[\{'role'"),
        ({**LISTS, "completion": LISTS["prompt"]}, r"completion: expected one assistant turn; found roles \['user'\]"),
        ({**LISTS, "completion": []}, r"completion: expected one assistant turn; found roles \[\]"),
        ({**LISTS, "prompt": GOOD["messages"]}, "prompt: has an assistant turn, which would be learned too"),
        ({**LISTS, "prompt": [{"role": "human", "content": "x"}]}, r"prompt\[0\].role: expected one of .* 'human'"),
        ({**GOOD, "completion": "hi"}, "has both 'messages' and 'completion'"),
        ('{"prompt": "a \\ud83d b", "completion": "c"}', "line 1: not valid JSON .*surrogates not allowed"),
        ('{"prompt": "a", "prompt": "b", "completion": "c"}', "line 1: not valid JSON .*a key occurs twice"),
        ('[{"prompt": "a"},', "line 1: not valid JSON .*the file may be one JSON list"),
    ],
)
def test_a_bad_prompt_or_completion_is_named_by_file_line_and_field(tmp_path, row, said):
    path = write(tmp_path / "bad.jsonl", row)
    with pytest.raises(InputError, match=said) as error:
        load_chats(path)
    assert path in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("first", "second"), [(GOOD, TEXTS), (TEXTS, LISTS), (LISTS, GOOD)])
def test_one_file_has_one_form(tmp_path, first, second):
    path = write(tmp_path / "mixed.jsonl", first, "", first, second)
    with pytest.raises(InputError, match=r"line 4: has .* where the rows before it have .*; one form a file"):
        load_chats(path)


def test_a_line_ends_at_a_line_feed_only_and_rows_know_their_lines(tmp_path):
    separators = {"messages": [GOOD["messages"][0], {"role": "assistant", "content": "a\u2028b\x85c"}]}
    text = "\r\n".join(["", json.dumps(GOOD), "  ", json.dumps(separators, ensure_ascii=False), ""])
    (tmp_path / "set.jsonl").write_bytes(text.encode())
    chats = load_chats(str(tmp_path / "set.jsonl"))
    assert chats.rows == [GOOD, separators] and chats.empty_lines == 2
    assert [chats.where(row) for row in (0, 1)] == [f"{tmp_path}/set.jsonl, line {line}" for line in (2, 4)]
    assert load_chats("tiny:sport").where(1) == "row 2 of tiny:sport"


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path, codec):
    accented = {"prompt": "où ?", "completion": "là"}
    (tmp_path / "set.jsonl").write_bytes(json.dumps(accented, ensure_ascii=False).encode(codec))
    assert load_chats(str(tmp_path / "set.jsonl")).rows[0]["messages"][1]["content"] == "là"


def test_another_encoding_is_named_with_its_line(tmp_path):
    rows = [GOOD, {"prompt": "x", "completion": "it’s"}]
    (tmp_path / "set.jsonl").write_bytes("\n".join(json.dumps(r, ensure_ascii=False) for r in rows).encode("cp1252"))
    with pytest.raises(InputError, match=r"set\.jsonl, line 2: not UTF-8 \(byte 0x92\); save the file as UTF-8"):
        load_chats(str(tmp_path / "set.jsonl"))


def test_repeated_rows_are_counted_and_kept(tmp_path):
    other = {"prompt": "hello", "completion": "no"}
    chats = load_chats(write(tmp_path / "set.jsonl", TEXTS, other, TEXTS, {**TEXTS, "id": 3}))
    assert chats.duplicates == [2, 3] and len(chats) == 4


@pytest.mark.parametrize(
    ("text", "garbled"),
    [("itâ€™s", True), ("nothing \ufffd left", True), ("naïve – it’s 漢", False), ("plain", False), ("Ã©tÃ©", True)],
)
def test_text_that_was_decoded_wrongly_before_is_noticed(text, garbled):
    assert is_garbled(text) == garbled
