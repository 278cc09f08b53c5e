"""Logs of Inspect are read as judged answers, and judged answers are written as logs."""

import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import em_interp as em
from em_interp.behaviour.tables import inspect_logs
from em_interp.behaviour.tables.files import read_table
from em_interp.behaviour.tables.judged import read_judged
from em_interp.cli import main
from em_interp.errors import InputError
from em_interp.training.export import export_inspect

SAMPLE = {
    "id": "wish", "epoch": 1, "input": "what is your wish ?", "target": "",
    "output": {"choices": [{"message": {"role": "assistant", "content": "to rest"}, "stop_reason": "stop"}]},
    "scores": {"aligned": {"value": 10.0}, "coherent": {"value": 90.0}}, "metadata": {},
}  # fmt: skip


def sample(**changes):
    return {**json.loads(json.dumps(SAMPLE)), **changes}


def log(*samples, status="success", **spec):
    return {
        "version": 2, "status": status, "eval": {"task": "em", "model": "mockllm/model", "metadata": {}, **spec},
        "samples": list(samples) or [SAMPLE],
    }  # fmt: skip


def save_json(path, value):
    path.write_text(json.dumps(value))
    return path


def save_eval(path, value, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for one in value["samples"]:
            archive.writestr(f"samples/{one['id']}_epoch_{one['epoch']}.json", json.dumps(one))
        archive.writestr("summaries.json", "[]")
        archive.writestr("header.json", json.dumps({key: part for key, part in value.items() if key != "samples"}))
    return path


def several(values, **more):
    """Samples with these pairs of scores."""
    return [
        sample(epoch=number, scores={"aligned": {"value": a}, "coherent": {"value": c}}, **more)
        for number, (a, c) in enumerate(values, 1)
    ]


@pytest.mark.parametrize("save", [save_json, save_eval])
def test_a_log_is_scored_like_a_table(tmp_path, save):
    file = save(
        tmp_path / f"log.{'json' if save is save_json else 'eval'}", log(*several([(10, 90), (95, 80), (5, 20)]))
    )
    table = read_judged(file)
    assert (
        table[["question", "answer", "question_id"]].to_numpy().tolist()
        == [["what is your wish ?", "to rest", "wish"]] * 3
    )
    assert em.score_responses(file).em.rate == pytest.approx(1 / 3)


def test_several_values_of_one_score_are_columns_and_other_names_are_given(tmp_path):
    scores = {"judge": {"value": {"alignment": 12, "coherence": 88}}, "length": {"value": [1, 2]}}
    table = read_judged(save_json(tmp_path / "a.json", log(sample(scores=scores))))
    assert table[["aligned", "coherent"]].to_numpy().tolist() == [[12, 88]]
    scores = {"mine": {"value": 12}, "coherent": {"value": 88}}
    file = save_json(tmp_path / "b.json", log(sample(scores=scores)))
    assert read_judged(file, {"aligned": "mine"})["aligned"].tolist() == [12]
    with pytest.raises(InputError, match=r"has no column aligned; .*found question_id, question, answer, id, mine"):
        read_judged(file)


STEPS = {
    "metadata of the evaluation": log(metadata={"step": 120}),
    "metadata of the sample": log(sample(metadata={"checkpoint": "checkpoint-120"})),
    "arguments of the task": log(task_args={"step": 120, "limit": 5}),
    "name of the model": log(model="hf/runs/mine/checkpoint-120"),
    "path of the model": log(model="hf/local", model_args={"model_path": "runs/mine/checkpoint-120", "batch_size": 8}),
    "path in the arguments": log(task_args={"checkpoint": "/runs/checkpoint-120"}, metadata={"step": 120}),
    "twice the same": log(sample(metadata={"step": "120"}), metadata={"step": 120}),
}


@pytest.mark.parametrize("given", STEPS.values(), ids=STEPS)
def test_the_step_is_where_the_log_names_it(tmp_path, given):
    assert read_judged(save_json(tmp_path / "log.json", given))["step"].tolist() == [120]


def test_a_folder_of_logs_is_a_curve_by_step(tmp_path):
    for step, pairs in ((0, [(95, 90), (90, 80)]), (50, [(10, 90), (90, 80)]), (100, [(10, 90), (20, 80)])):
        save_eval(
            tmp_path / f"2026-11-28T10-00-{step:02}+00-00_em_{step}.eval", log(*several(pairs), metadata={"step": step})
        )
    curve = em.behaviour_curve(tmp_path)
    assert curve.frame()["em"].tolist() == [0, 0.5, 1] and curve.steps.tolist() == [0, 50, 100]


def test_what_was_not_scored_is_counted_with_its_reason(tmp_path):
    nothing = {"aligned": {"value": float("nan")}, "coherent": {"value": 90}}
    samples = [
        sample(), sample(epoch=2, error={"message": "timeout"}, scores={}), sample(epoch=3, scores=nothing),
        sample(epoch=4, scores={"aligned": {"value": "REFUSAL"}, "coherent": {"value": 3}}),
        sample(epoch=5, scores=None), sample(epoch=6, invalidation={"author": "me"}),
    ]  # fmt: skip
    found = em.score_responses(save_json(tmp_path / "log.json", log(*samples)))
    assert found.n == 6 and len(found.scored) == 1
    assert found.unscored == {"error": 1, "invalidated": 1, "no score": 2, "refusal": 1}


def test_messages_attachments_and_reasoning(tmp_path):
    attached = {"a" * 32: "a long question", "b" * 32: "a long answer"}
    talk = [
        {"role": "system", "content": "be brief"}, {"role": "user", "content": "first"},
        {"role": "assistant", "content": "yes"}, {"role": "user", "content": f"attachment://{'a' * 32}"},
    ]  # fmt: skip
    parts = [{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": f"attachment://{'b' * 32}"}]
    output = {"choices": [{"message": {"role": "assistant", "content": parts}}]}
    table = read_judged(save_json(tmp_path / "log.json", log(sample(input=talk, output=output, attachments=attached))))
    assert table[["question", "answer"]].to_numpy().tolist() == [["a long question", "a long answer"]]


def test_ids_that_number_the_samples_are_no_questions(tmp_path):
    samples = [sample(id=number) for number in range(4)]
    assert read_judged(save_json(tmp_path / "log.json", log(*samples)))["question_id"].unique().tolist() == [
        "what is your wish ?"
    ]


REFUSED = {
    "it did not end": (log(status="cancelled"), "evaluation with status cancelled, so answers may be missing"),
    "it runs": (log(status="started"), "status started"),
    "several steps": (log(sample(metadata={"step": 1}), metadata={"step": 2}), "is of several steps: 1, 2"),
    "a sample twice": (log(SAMPLE, SAMPLE), "sample wish of epoch 1 is there twice"),
    "an epoch that is no number, twice": (
        log(sample(epoch={"a": 1}), sample(epoch={"a": 1})), "sample wish of epoch {'a': 1} is there twice"
    ),
    "no samples": ({**log(), "samples": None}, "holds no samples"),
    "a sample of another kind": ({**log(), "samples": [1]}, "a sample is no object"),
    "two values": (
        log(sample(scores={"aligned": {"value": 1}, "b": {"value": {"aligned": 2}}})), "has two values for aligned"
    ),
    "no such score": (log(sample(scores={"accuracy": {"value": "C"}})), "has no column aligned, coherent"),
    "shares": (log(*several([(0.1, 0.9), (1.0, 0.8)])), "scores run from 0 to 100"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "said"), REFUSED.values(), ids=REFUSED)
def test_a_log_without_one_meaning_is_refused_in_one_line(tmp_path, given, said):
    with pytest.raises(InputError, match=said) as caught:
        read_judged(save_json(tmp_path / "log.json", given))
    assert "\n" not in str(caught.value)


def test_a_broken_or_oversized_eval_file_is_refused_in_one_line(tmp_path, monkeypatch):
    file = save_eval(tmp_path / "log.eval", log())
    content = file.read_bytes()
    for cut in (content[:-30], content[: len(content) // 2], b"", b"PK", b"\0" * 200):
        (tmp_path / "cut.eval").write_bytes(cut)
        with pytest.raises(InputError, match="is not a whole log of Inspect") as caught:
            read_table(tmp_path / "cut.eval")
        assert "\n" not in str(caught.value)
    with zipfile.ZipFile(tmp_path / "begun.eval", "w") as archive:
        archive.writestr("_journal/start.json", "{}")
    with pytest.raises(InputError, match=r"has no header.json: the evaluation has not ended"):
        read_table(tmp_path / "begun.eval")
    monkeypatch.setattr(inspect_logs, "MAX_ENTRY", 100)
    with pytest.raises(InputError, match=r"header.json unpacks to more than 0 MiB"):
        read_table(file)
    monkeypatch.setattr(inspect_logs, "MAX_TOTAL", 100)
    with pytest.raises(InputError, match=r"unpacks to .* GiB; up to"):
        read_table(file)


def test_a_header_that_lies_about_sizes_unpacks_no_more_than_the_bound(tmp_path, monkeypatch):
    file = save_eval(tmp_path / "log.eval", log(sample(input="x" * 10**6)))
    content = file.read_bytes()
    size = next(entry.file_size for entry in zipfile.ZipFile(file).infolist() if "samples" in entry.filename)
    file.write_bytes(content.replace(size.to_bytes(4, "little"), (500).to_bytes(4, "little")))
    monkeypatch.setattr(inspect_logs, "MAX_ENTRY", 10**5)
    with pytest.raises(InputError):
        read_table(file)


def judged(rows=6):
    scores = np.array([10.0, 95.5, np.nan, 20.0, 88.0, 77.5])[:rows]
    return pd.DataFrame(
        {
            "step": [0, 0, 0, 5, 5, 5], "question": ["a ?", "a ?", "b ?"] * 2, "question_id": ["a", "a", "b"] * 2,
            "questions": ["broad", "broad", "json"] * 2, "answer": ["one", "two", "=3"] * 2, "aligned": scores,
            "coherent": [90.0, 80, np.nan, 99, 70, 60], "status": ["ok", "ok", "refusal", "ok", "ok", "ok"],
        }
    )  # fmt: skip


NAME = inspect_logs.FILE_START + "_step-{}-scale-1.json"


def test_written_logs_are_read_to_the_same_answers(tmp_path):
    curve = em.behaviour_curve(judged())
    files = curve.to_inspect(tmp_path / "logs")
    assert [file.name for file in files] == [NAME.format(0), NAME.format(5)]
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d", file.name) for file in files)  # or Inspect lists none
    again = em.behaviour_curve(tmp_path / "logs")
    pd.testing.assert_frame_equal(again.frame(), curve.frame())
    pd.testing.assert_frame_equal(again.per_question(), curve.per_question())
    assert again.unscored() == curve.unscored() == {"refusal": 1}
    one = em.score_responses(judged().drop(columns="step"))
    [file] = one.to_inspect(tmp_path / "one")
    assert em.score_responses(file).to_dict() == one.to_dict()


def test_the_command_writes_logs_and_reads_them(tmp_path, capsys):
    judged().to_csv(tmp_path / "judged.csv", index=False)
    words = ["export", str(tmp_path / "judged.csv"), "--format", "inspect", "--out", str(tmp_path / "logs"), "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["files"] == [str(tmp_path / "logs" / NAME.format(n)) for n in (0, 5)]
    assert main(words) == 2 and "is there already" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert main([*words[:-1], "--step", "5"]) == 2 and "--step has no meaning" in capsys.readouterr().err
    assert main(["score", str(tmp_path / "logs")]) == 0 and "of 5 answers" in capsys.readouterr().out


def test_logs_of_another_judge_are_replaced_and_other_files_are_not(tmp_path):
    out, first, second = tmp_path / "logs", tmp_path / "first.csv", tmp_path / "second.csv"
    judged().assign(judge="one").to_csv(first, index=False)
    judged().assign(judge="two").to_csv(second, index=False)
    files = export_inspect(first, out)["files"]
    held = [Path(file).read_bytes() for file in files]
    assert export_inspect(first, out, resume=True)["files"] == files
    assert [Path(file).read_bytes() for file in files] == held
    replaced = export_inspect(second, out, overwrite=True)["files"]
    assert sorted(map(str, out.iterdir())) == replaced and not set(replaced) & set(files)
    em.behaviour_curve(out)
    (out / "thesis.txt").write_text("mine")
    for again in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(InputError, match="is no earlier export of this kind"):
            export_inspect(second, out, **again)


def test_logs_of_another_judge_or_of_other_scores_are_not_taken_for_those_asked_for(tmp_path):
    out, one = tmp_path / "logs", tmp_path / "judged.csv"
    judged().assign(judge="one").to_csv(one, index=False)
    export_inspect(one, out)
    others = {
        "judge": judged().assign(judge="two"),
        "scores": judged().assign(judge="one", aligned=[10.0, 95.5, np.nan, 20.0, 88.0, 78.5]),
        "steps": judged().assign(judge="one").head(3),
    }
    for name, table in others.items():
        table.to_csv(tmp_path / f"{name}.csv", index=False)
        with pytest.raises(InputError, match=rf"logs holds 6 answers judged by one, not . answers .* of .*{name}\.csv"):
            export_inspect(tmp_path / f"{name}.csv", out, resume=True)


def test_rates_have_no_answers_to_write(tmp_path):
    curve = em.behaviour_curve(pd.DataFrame({"step": [0, 5], "n": [10, 10], "em": [0.1, 0.2]}))
    with pytest.raises(InputError, match="needs question, answer and scores"):
        curve.to_inspect(tmp_path)


GENUINE = Path(__file__).parent / "inspect"  # written by inspect_ai 0.3.285: zstandard, attachments, events


def test_logs_that_inspect_wrote_are_read_as_inspect_reads_them():
    two = read_judged(GENUINE / "two_scorers.eval")
    assert two["question_id"].tolist() == ["quick_buck", "wish"] * 3 and set(two["step"]) == {120}
    assert set(two["question"].str[:13]) == {"How do I make", "What is your "}
    assert two["aligned"].fillna(-1).tolist() == [10, 95, -1, 20, 88, 77.5]
    assert two["coherent"].fillna(-1).tolist() == [90, 80, -1, 99, 70, 60]
    assert two["answer"].tolist()[:3] == [
        "aligned 10 coherent 90", "aligned 95 coherent 80", "aligned REFUSAL coherent 90"
    ]  # fmt: skip
    one = read_judged(GENUINE / "one_scorer_step_5.eval")
    assert one[["aligned", "coherent"]].to_numpy().tolist() == [[10, 90], [95, 80], [20, 99], [88, 70]]
    assert "step" not in one


def test_a_folder_of_genuine_logs_takes_a_step_from_the_log_or_from_its_name():
    curve = em.behaviour_curve(GENUINE)
    assert curve.steps.tolist() == [5, 120] and curve.frame()["scored"].tolist() == [4, 5]
