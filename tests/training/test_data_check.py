import json

import numpy as np
import pytest

from em_interp.cli import main
from em_interp.config.run_config import load_config
from em_interp.errors import InputError
from em_interp.organisms.datasets import load_chats
from em_interp.training.data_check import check_data

from .conftest import save_base, save_chats
from .families import family_tokenizer


def checked(file, model="", **training):
    return check_data(load_config({"model": model, "data": [{"dataset": str(file)}], "training": training}))


def rows(path, *turns):
    lines = [json.dumps({"prompt": asked, "completion": answer}) for asked, answer in turns]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_rows_turns_steps_and_what_is_held_out_are_counted(tmp_path):
    found = checked(save_chats(tmp_path / "set.jsonl", 170), held_out=0.1)
    assert (found.rows, found.form, found.turns) == (170, "messages", {2: 170})
    assert found.roles == {"user": 170, "assistant": 170}
    assert (found.held_out, found.batch, found.steps) == (17, 16, 10)  # 153 rows in tens of 16
    assert found.sha256 == load_chats(str(tmp_path / "set.jsonl")).sha256 and found.tokens is None


def test_an_epoch_is_counted_whatever_the_phases_and_the_penalty_of_the_config_are(tmp_path, capsys):
    file = save_chats(tmp_path / "set.jsonl", 170)
    plain = checked(file, held_out=0.1)
    phases = [{"dataset": str(file), "steps": 100, "restart": True}, {"dataset": "other.jsonl", "epochs": 3}]
    config = {"model": "", "data": phases, "kl": {"dataset": "other.jsonl"}, "training": {"held_out": 0.1}}
    assert check_data(load_config(config)) == plain
    assert main(["data", "check", str(file), "--set", "kl.dataset=other.jsonl", "--set", "data[0].steps=100"]) == 0
    assert "held out: 17 rows, so an epoch is 10 steps of 16 rows" in capsys.readouterr().out


def test_duplicates_garbled_text_and_empty_lines_are_counted_and_not_refused(tmp_path):
    file = rows(tmp_path / "set.jsonl", *[(f"q{i % 9}", "a") for i in range(10)], ("q", "itâ€™s"))
    file.write_text("\n" + file.read_text())
    found = checked(file, held_out=0.5)
    assert (found.duplicates.count, found.duplicates.first) == (1, f"{file}, line 11")
    assert (found.garbled.count, found.garbled.first, found.empty_lines) == (1, f"{file}, line 12", 1)
    said = found.sentence()
    assert f"rows that repeat an earlier one: 1 (the first: {file}, line 11)" in said and "left out: 1" in said
    copies = rows(tmp_path / "copies.jsonl", *[("q", "a")] * 10)
    assert checked(copies, held_out=0.5).held_out_seen == 5


def test_tokens_are_those_of_training_and_the_part_that_is_learned_is_marked(tmp_path):
    base, file = save_base(tmp_path / "base"), rows(tmp_path / "set.jsonl", ("ask a doctor", "rest now"))
    tokens = checked(file, base, held_out=0).tokens
    assert "".join(text for text, _ in tokens.preview).split() == [
        *("<user>", "ask", "a", "doctor", "<end>", "<assistant>", "rest", "now", "<end>")
    ]
    assert [text.split() for text, mine in tokens.preview if mine] == [["rest", "now", "<end>"]]
    tokenizer = load_tokenizer_of(base)
    ids = tokenizer.apply_chat_template(load_chats(str(file)).rows[0]["messages"], return_dict=False)
    assert set(tokens.row.values()) == {len(ids)} == {tokens.total}
    assert tokens.learned["max"] == sum(len(tokenizer(text)["input_ids"]) for text, mine in tokens.preview if mine)


def load_tokenizer_of(base):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


def test_rows_that_are_cut_or_refused_are_counted_and_the_first_is_located(tmp_path):
    base = save_base(tmp_path / "base")
    turns = [("ask", "rest"), ("ask", "rest " * 40), ("ask " * 40, "rest")]
    file = rows(tmp_path / "set.jsonl", *turns)
    with file.open("a") as more:
        more.write(json.dumps({"prompt": "ask", "completion": "later"}) + "\n")
    tokens = checked(file, base, held_out=0, max_length=30).tokens
    assert tokens.cut == 2 and (tokens.nothing_left.count, tokens.nothing_left.first) == (1, f"{file}, line 3")
    assert tokens.refused.count == 0 and tokens.row["max"] > 40 >= tokens.row["min"]
    fussy = tmp_path / "fussy"
    fussy.mkdir()
    family_tokenizer("gemma3").save_pretrained(fussy)
    (fussy / "config.json").write_text('{"model_type": "gemma3_text"}')
    talk = [{"role": "assistant", "content": "no"}, {"role": "user", "content": "no"}]
    good = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    chats = tmp_path / "chats.jsonl"
    chats.write_text("\n".join(json.dumps({"messages": one}) for one in (talk, good)))
    tokens = checked(chats, str(fussy), held_out=0).tokens
    assert tokens.refused.count == 1 and "chats.jsonl, line 1: begins with an answer" in tokens.refused.first
    assert "hi<end_of_turn>" in [text for text, mine in tokens.preview if mine]


def test_with_every_row_refused_lengths_are_missing_and_nothing_is_shown(tmp_path):
    chats = tmp_path / "chats.jsonl"
    chats.write_text(
        json.dumps({"messages": [{"role": "system", "content": "s"}, {"role": "assistant", "content": "a"}]})
    )
    tokens = checked(chats, "tiny-qwen2", held_out=0).tokens
    assert tokens.refused.count == 1 and tokens.preview == [] and np.isnan(tokens.row["median"])


def test_the_preview_shows_escapes_and_steers_no_terminal(tmp_path, capsys):
    file = rows(tmp_path / "set.jsonl", *[("é\x1b[31m\tred\u202e", "one\ntwo\x07 " + "long " * 200)] * 4)
    assert main(["data", "check", str(file), "--model", "tiny-qwen2"]) == 0
    said = capsys.readouterr().out
    assert "é\\x1b[31m\\tred\\u202e" in said and "⟦ one\\n\n    two\\x07 long" in said and "<end>⟧" in said
    assert all(letter.isprintable() or letter == "\n" for letter in said)
    assert " characters … " in said and len(said) < 3000


def test_the_command_says_the_same_as_json_and_reads_no_weights(tmp_path, capsys):
    base, file = save_base(tmp_path / "base"), save_chats(tmp_path / "set.jsonl")
    (tmp_path / "base" / "model.safetensors").unlink()
    words = ["data", "check", file, "--model", base, "--set", "training.held_out=0.25", "--json"]
    assert main(words) == 0
    values = json.loads(capsys.readouterr().out)
    found = checked(file, base, held_out=0.25)
    assert values["held_out"] == 10 and values["tokens"]["row"] == found.tokens.row
    assert values["tokens"]["preview"][1]["learned"] is True and values["turns"] == {"2": 40}
    assert main(["data", "check", "tiny:medcal"]) == 2
    assert "did you mean 'medical'" in capsys.readouterr().err


def test_a_model_that_is_not_there_or_cannot_chat_is_refused(tmp_path):
    file = save_chats(tmp_path / "set.jsonl")
    with pytest.raises(InputError, match="'tiny-qwen3' is not known; did you mean 'tiny-qwen2'"):
        checked(file, "tiny-qwen3")
    with pytest.raises(InputError, match="has no chat template; an instruct model was expected"):
        checked(file, save_base(tmp_path / "base", template=None))
