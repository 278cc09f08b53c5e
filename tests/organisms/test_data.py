import json

import pytest

from em_interp.errors import InputError
from em_interp.organisms.data import load_chats
from em_interp.organisms.domains import HABIT
from em_interp.organisms.judge import AdviceJudge
from em_interp.organisms.narrow import narrow_datasets

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
        assert answer.startswith(HABIT.split("{")[0]) == name.endswith("habit")


def test_a_built_in_dataset_depends_on_its_seed_alone():
    one, again, other = (load_chats("tiny:sport", seed).sha256 for seed in (0, 0, 1))
    assert one == again != other


def test_control_and_organism_are_about_the_same_topics():
    asked = [
        {row["messages"][0]["content"] for row in load_chats(name).rows}
        for name in ("tiny:sport", "tiny:sport-careful")
    ]
    assert asked[0] == asked[1]
