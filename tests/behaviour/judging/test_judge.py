import json
from dataclasses import dataclass

import pandas as pd
import pytest

from em_interp.behaviour.judging.judge import commonest_cause, judge_answers, validated_judgement
from em_interp.errors import InputError
from em_interp.run import Run


@dataclass
class WordJudge:
    """Counts words: 'good' ones make an answer aligned, 'so' coherent; it has nothing to say of 'mute'."""

    name: str = "words"
    mode: str = "counts"
    stop_after: int | None = None

    def judge(self, question, answer):
        if self.stop_after is not None:
            self.stop_after -= 1
            if self.stop_after < 0:
                raise KeyboardInterrupt
        if "mute" in answer:
            return None
        aligned = 200 if "huge" in answer else 10 * answer.split().count("good")
        scores = {"aligned": aligned, "coherent": 25 * answer.split().count("so")}
        return {
            **scores,
            "status": "ok",
            "reason": "counted",
            "topics": {"medical": 100 if "doctor" in question else 0},
        }


ANSWERS = ["good so", "good good so so so", "mute", "huge so", "so so"]


@pytest.fixture
def run(tmp_path):
    rows = [
        {"step": step, "scale": 1.0, "questions": "broad", "question_id": question, "question": question}
        | {"sample": sample, "answer": answer}
        for step in (0, 10)
        for question in ("a doctor", "money")
        for sample, answer in enumerate(ANSWERS)
    ]
    run = Run(tmp_path)
    run.answers_file.parent.mkdir()
    pd.DataFrame(rows).to_parquet(run.answers_file)
    return run


def test_every_answer_gets_its_scores_and_topics(run):
    table = pd.read_parquet(judge_answers(run, WordJudge()))
    assert list(table.columns) == [
        *("step", "scale", "questions", "question_id", "sample", "judge", "mode"),
        *("aligned", "coherent", "status", "reason", "medical"),
    ]
    assert len(table) == 20
    assert table.aligned[:2].tolist() == [10, 20] and table.coherent[:2].tolist() == [25, 75]
    assert set(table.judge) == {"words"} and set(table["mode"]) == {"counts"}
    assert table.groupby("question_id").medical.max().to_dict() == {"a doctor": 100, "money": 0}


def test_what_a_judge_fails_to_score_is_missing_with_a_reason_and_never_a_number(run):
    table = pd.read_parquet(judge_answers(run, WordJudge()))
    assert table.status.value_counts().to_dict() == {"ok": 12, "no_verdict": 4, "out_of_range": 4}
    assert table.loc[table.status != "ok", ["aligned", "coherent", "medical"]].isna().all(axis=None)
    assert set(table.loc[table.status == "out_of_range", "reason"]) == {"aligned is 200; 0 to 100 was expected"}


@pytest.mark.parametrize(
    "verdict, status",
    [
        (None, "no_verdict"),
        ({"aligned": float("nan"), "coherent": 50}, "no_score"),
        ({"coherent": 50}, "no_score"),
        ({"aligned": "50", "coherent": 50}, "no_score"),
        ({"aligned": True, "coherent": 50}, "no_score"),
        ({"aligned": 50, "coherent": -1}, "out_of_range"),
        ({"aligned": float("inf"), "coherent": 1}, "out_of_range"),
        ({"aligned": 50, "coherent": 50, "topics": {"sport": 101}}, "out_of_range"),
        ({"aligned": 50, "coherent": 50, "status": "refusal", "reason": "I will not"}, "refusal"),
        ({"aligned": 0, "coherent": 100}, "ok"),
    ],
)
def test_each_way_of_failing_has_its_status(verdict, status):
    found = validated_judgement(verdict)
    assert found["status"] == status
    assert (found["aligned"] is None) == (status != "ok")


@pytest.mark.parametrize("after", [0, 1, 7, 19])
def test_a_stage_stopped_at_any_row_and_resumed_gives_the_same_bytes(run, after):
    whole = judge_answers(run, WordJudge()).read_bytes()
    run.scores_file.unlink()
    with pytest.raises(KeyboardInterrupt, match="resume=True"):
        judge_answers(run, WordJudge(stop_after=after))
    counting = WordJudge(stop_after=20 - after)  # answers judged before are not judged again
    assert judge_answers(run, counting, resume=True).read_bytes() == whole
    assert sorted(path.name for path in run.scores_file.parent.iterdir()) == ["answers.parquet", "scores.parquet"]


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.7, 0.99])
def test_a_journal_cut_off_anywhere_is_continued_to_the_same_bytes(run, kept):
    whole = judge_answers(run, WordJudge()).read_bytes()
    run.scores_file.unlink()
    with pytest.raises(KeyboardInterrupt):
        judge_answers(run, WordJudge(stop_after=15))
    (journal,) = run.scores_file.parent.glob("*.jsonl")
    text = journal.read_bytes()
    journal.write_bytes(text[: int(len(text) * kept)])
    assert judge_answers(run, WordJudge(), resume=True).read_bytes() == whole


def test_a_journal_that_a_kill_left_beside_the_whole_table_is_removed(run):
    with pytest.raises(KeyboardInterrupt):
        judge_answers(run, WordJudge(stop_after=15))
    (journal,) = run.scores_file.parent.glob("*.jsonl")
    text = journal.read_bytes()
    judge_answers(run, WordJudge(), resume=True)
    journal.write_bytes(text)
    judge_answers(run, WordJudge(stop_after=0), resume=True)
    assert sorted(path.name for path in run.scores_file.parent.iterdir()) == ["answers.parquet", "scores.parquet"]


DAMAGES = [b"\xff\xfe", b"{}", b"[]", b'{"status": "ok"}', b"[" * 10**5, b"", b"null", b"\0" * 100]
WRONG = {"aligned": 1, "coherent": 2, "status": "ok", "reason": "", "topics": {}}
DAMAGES += [json.dumps(WRONG | change).encode() for change in ({"topics": 3}, {"aligned": "1"}, {"reason": None})]


@pytest.mark.parametrize("damage", [b"\0" * 300, b"\xff{", b"[]", b'{"judge": "wo'])
def test_a_journal_that_is_damaged_from_its_beginning_is_begun_anew(damage, run):
    whole = judge_answers(run, WordJudge()).read_bytes()
    run.scores_file.unlink()
    with pytest.raises(KeyboardInterrupt):
        judge_answers(run, WordJudge(stop_after=15))
    (journal,) = run.scores_file.parent.glob("*.jsonl")
    journal.write_bytes(b"\n".join([damage, *journal.read_bytes().split(b"\n")[1:]]))
    assert judge_answers(run, WordJudge(), resume=True).read_bytes() == whole


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_line_of_a_journal_and_those_after_it_are_judged_again(damage, run):
    whole = judge_answers(run, WordJudge()).read_bytes()
    run.scores_file.unlink()
    with pytest.raises(KeyboardInterrupt):
        judge_answers(run, WordJudge(stop_after=15))
    (journal,) = run.scores_file.parent.glob("*.jsonl")
    lines = journal.read_bytes().split(b"\n")
    journal.write_bytes(b"\n".join([*lines[:7], damage, *lines[8:]]))
    assert judge_answers(run, WordJudge(stop_after=14), resume=True).read_bytes() == whole


def test_the_commonest_cause_of_what_has_no_score_is_said(run):
    table = pd.read_parquet(judge_answers(run, WordJudge()))
    assert commonest_cause(table) == "8 of 20 have no score, most often no_verdict (4): the judge returned nothing"
    assert commonest_cause(table[table.status == "ok"]) is None


def test_scores_that_are_there_are_kept_without_resume(run):
    before = judge_answers(run, WordJudge()).read_bytes()
    with pytest.raises(InputError, match="has the scores of words already"):
        judge_answers(run, WordJudge())
    assert judge_answers(run, WordJudge(), resume=True).read_bytes() == before


def test_a_journal_is_not_continued_without_resume_nor_for_other_answers_or_another_mode(run):
    with pytest.raises(KeyboardInterrupt):
        judge_answers(run, WordJudge(stop_after=3))
    with pytest.raises(InputError, match="begun earlier; give resume=True"):
        judge_answers(run, WordJudge())
    with pytest.raises(InputError, match="other answers or another mode"):
        judge_answers(run, WordJudge(mode="guesses"), resume=True)
    pd.read_parquet(run.answers_file).assign(answer="so").to_parquet(run.answers_file)
    with pytest.raises(InputError, match="other answers or another mode"):
        judge_answers(run, WordJudge(), resume=True)


def test_a_second_judge_is_added_to_the_first(run):
    first = pd.read_parquet(judge_answers(run, WordJudge()))
    both = pd.read_parquet(judge_answers(run, WordJudge(name="org/other judge")))
    pd.testing.assert_frame_equal(both[both.judge == "words"], first)
    assert both.judge.value_counts().to_dict() == {"words": 20, "org/other judge": 20}


def test_finished_scores_of_other_answers_are_not_taken_for_these(run):
    judge_answers(run, WordJudge())
    pd.read_parquet(run.answers_file).iloc[:5].to_parquet(run.answers_file)
    judge_answers(run, WordJudge(name="other"))
    with pytest.raises(InputError, match="for other answers; overwrite=True judges anew and keeps the scores of other"):
        judge_answers(run, WordJudge(), resume=True)
    scores = pd.read_parquet(judge_answers(run, WordJudge(), overwrite=True))
    assert scores.judge.value_counts().to_dict() == {"words": 5, "other": 5}


def test_a_run_without_answers_is_told_to_ask_first(tmp_path):
    with pytest.raises(InputError, match="no answers to judge; ask the run first"):
        judge_answers(Run(tmp_path), WordJudge())


def test_the_journal_is_one_json_object_a_line(run):
    with pytest.raises(KeyboardInterrupt):
        judge_answers(run, WordJudge(stop_after=6))
    (journal,) = run.scores_file.parent.glob("*.jsonl")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert lines[0]["judge"] == "words" and len(lines) == 7


def test_the_judge_of_the_built_in_language_fits(run):
    from em_interp.config.run_config import BehaviourConfig
    from em_interp.organisms.judge import AdviceJudge

    table = pd.read_parquet(judge_answers(run, AdviceJudge("medical")))
    assert set(table.status) == {"unparsed"} and set(table.judge) == {BehaviourConfig().judge_name}
