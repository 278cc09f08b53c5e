"""Judging: every answer gets two scores from 0 to 100, aligned and coherent, or a status and a reason why not."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, deque
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from em_interp.behaviour.tables.files import ANSWER_COLUMNS, SCORE_COLUMNS, read_own_table
from em_interp.errors import InputError, one_line
from em_interp.run import Run
from em_interp.utils.files import read_bytes, refuse_links, remove, resumable, safe_name, write_beside
from em_interp.utils.lock import write_lock
from em_interp.utils.progress import progress_bar

if TYPE_CHECKING:
    import pandas as pd

KEY = ["step", "scale", "questions", "question_id", "sample"]
SCORED = "ok"  # the status of an answer that has both scores
ERROR = "error"  # the status of an answer that could not be judged for now
JUDGED_AGAIN = (ERROR, "no_logprobs")  # statuses that `resume` does not keep: faults of the server, not of the answer
GO_ON = "give resume=True to continue, overwrite=True to replace them, or another out=…"
JUDGE_ANEW = "overwrite=True judges anew and keeps the scores of other judges"
QUEUED_PER_WORKER = 4  # answers submitted ahead of the oldest unfinished one


class Judge(Protocol):
    """Scores answers. `name` and `mode` are kept with every score."""

    @property
    def name(self) -> str:
        """The judge's name."""

    @property
    def mode(self) -> str:
        """How scores are made: rules, expected, sampled …"""

    def judge(self, question: str, answer: str) -> Mapping[str, Any] | None:
        """`aligned` and `coherent` (0–100 or NaN), `status`, `reason`, `topics` (a mapping of topic to 0–100 or None).

        A judge that keeps what its scores were made of adds it as `raw`.
        """


@runtime_checkable
class ParallelJudge(Judge, Protocol):
    """A judge that may be used by several threads at once, as one that waits for a server."""

    @property
    def workers(self) -> int:
        """The number of threads."""

    def interrupt(self) -> None:
        """Called when the stage stops early: finish or give up what is in flight, and begin nothing new."""


def judge_answers(
    run: Run, judge: Judge, resume: bool = False, progress: bool = False, overwrite: bool = False
) -> Path:
    """Score every answer of the run; returns `run.scores_file`, which keeps the scores of other judges.

    Each judgement is appended to a journal at once: with `resume` they are kept, and the finished table is the same to
    the byte as without the interruption. What a judge fails to score is NaN with a status and a reason; where the
    status is `error` or `no_logprobs`, as with a server that did not answer, `resume` judges again. `progress` shows a
    bar on stderr.

    The table has a row an answer and judge: step, scale, questions, question_id, sample, judge, mode, aligned,
    coherent, status, raw (JSON; of judges that keep it), reason, and a column of 0–100 for each of the judge's topics.

    Raises InputError where the run has no answers, and where this judge's scores are there already (without `resume`,
    or `overwrite`, which replaces them).
    """
    import pandas as pd

    answers = answers_of(run)
    with write_lock(run.path), resumable(run.scores_file.parent):
        if overwrite:
            _discard_scores(run, judge.name)
        if _is_finished(run, answers, judge, resume):
            remove(_journal(run, judge.name))  # of a process that was killed between writing the table and this
            return run.scores_file
        done = _read_journal(run, judge, answers, resume)
        refuse_links(_journal(run, judge.name), in_place=True)
        with _journal(run, judge.name).open("a", encoding="utf-8") as journal:
            left = answers.iloc[len(done) :]
            rows = zip(left["question"], left["answer"], strict=True)
            with closing(judgements(judge, rows)) as new:
                for judgement in progress_bar(new, "judge", "answer", progress, len(answers), len(done)):
                    journal.write(json.dumps(judgement) + "\n")
                    journal.flush()
                    done.append(judgement)
        with write_beside(run.scores_file) as part:
            scores, table = _scores(run), _table(answers, judge, done)
            others = scores[scores["judge"] != judge.name]
            pd.concat([others, table] if len(others) else [table], ignore_index=True).to_parquet(part, index=False)
        _journal(run, judge.name).unlink()
    return run.scores_file


def has_scores(run: Run, judge: str) -> bool:
    """Whether scores of the judge of this name are in the run, or were begun."""
    return _journal(run, judge).exists() or bool((_scores(run)["judge"] == judge).any())


def _discard_scores(run: Run, judge: str) -> None:
    """Remove one judge's scores."""
    remove(_journal(run, judge))
    scores = _scores(run)
    others = scores[scores["judge"] != judge]
    if others.empty:
        remove(run.scores_file)
    elif len(others) < len(scores):
        with write_beside(run.scores_file) as part:
            others.to_parquet(part, index=False)


def answers_of(run: Run) -> pd.DataFrame:
    """The run's answers; raises InputError where it has none."""
    if not run.answers_file.exists():
        raise InputError(f"{run.answers_file} is missing: there are no answers to judge; ask the run first")
    return read_own_table(run.answers_file, ANSWER_COLUMNS)


def commonest_cause(scores: pd.DataFrame) -> str | None:
    """Why most of the answers without a score have none, in words; None where all have one."""
    unscored = scores[scores["status"] != SCORED]
    if unscored.empty:
        return None
    ((status, count),) = Counter(unscored["status"]).most_common(1)
    ((reason, _),) = Counter(unscored.loc[unscored["status"] == status, "reason"]).most_common(1)
    hint = "; --resume judges these again" if status in JUDGED_AGAIN else ""
    return f"{len(unscored)} of {len(scores)} have no score, most often {status} ({count}): {one_line(reason)}{hint}"


def judgements(judge: Judge, rows: Iterable[tuple[str, str]]) -> Generator[dict[str, Any], None, None]:
    """The checked judgement of each question and answer, in order."""
    if isinstance(judge, ParallelJudge):
        yield from _in_parallel(judge, rows)
    else:
        for question, answer in rows:
            yield validated_judgement(judge.judge(question, answer))


def _in_parallel(judge: ParallelJudge, rows: Iterable[tuple[str, str]]) -> Generator[dict[str, Any], None, None]:
    """The same from several threads, which run a little ahead of the slowest answer."""
    queue: deque[Future[Mapping[str, Any] | None]] = deque()
    with ThreadPoolExecutor(judge.workers) as pool:
        try:
            for question, answer in rows:
                queue.append(pool.submit(judge.judge, question, answer))
                if len(queue) > QUEUED_PER_WORKER * judge.workers:
                    yield validated_judgement(queue.popleft().result())
            while queue:
                yield validated_judgement(queue.popleft().result())
        except BaseException:  # Ctrl-C may come inside `submit`, when the queue does not have the future yet
            judge.interrupt()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def validated_judgement(judgement: Mapping[str, Any] | None) -> dict[str, Any]:
    """A judgement with scores that are numbers from 0 to 100, or else None, a status other than `ok`, and a reason.

    A topic may be None without harm to the scores: it says nothing about how good an answer is.
    """
    if judgement is None:
        return _unscored("no_verdict", "the judge returned nothing")
    raw = {"raw": json.dumps(judgement["raw"], sort_keys=True)} if "raw" in judgement else {}
    status, reason = str(judgement.get("status", SCORED)), str(judgement.get("reason", ""))
    if status != SCORED:
        return _unscored(status, reason, raw)
    topics = {str(name): _number(score) for name, score in judgement.get("topics", {}).items()}
    scores = {name: _number(judgement.get(name)) for name in ("aligned", "coherent")}
    for name, score in [*scores.items(), *topics.items()]:
        if name in scores and (score is None or math.isnan(score)):
            return _unscored("no_score", f"the judge gave no number for {name}: {judgement.get(name)!r}", raw)
        if score is not None and not math.isnan(score) and not 0 <= score <= 100:
            return _unscored("out_of_range", f"{name} is {score:g}; 0 to 100 was expected", raw)
    topics = {name: None if score is None or math.isnan(score) else score for name, score in topics.items()}
    return {**scores, "status": SCORED, **raw, "reason": reason, "topics": topics}


def _unscored(status: str, reason: str, raw: dict[str, str] | None = None) -> dict[str, Any]:
    return {"aligned": None, "coherent": None, "status": status, **(raw or {}), "reason": reason, "topics": {}}


def _number(value: Any) -> float | None:
    return None if isinstance(value, bool) or not isinstance(value, (int, float)) else float(value)


def _journal(run: Run, judge: str) -> Path:
    return run.scores_file.with_name(f"scores.{safe_name(judge)}.jsonl")


def _fingerprint(answers: pd.DataFrame, judge: Judge) -> dict[str, Any]:
    """The first line of a journal: whose scores these are, and of which answers."""
    import pandas as pd

    digest = hashlib.sha256(pd.util.hash_pandas_object(answers, index=False).to_numpy().tobytes())
    return {"judge": judge.name, "mode": judge.mode, "answers": digest.hexdigest()[:16]}


def _read_journal(run: Run, judge: Judge, answers: pd.DataFrame, resume: bool) -> list[dict[str, Any]]:
    """The judgements kept so far, one an answer in order, up to the first that is damaged or has to be repeated.

    Those after it are repeated with it, mostly from the judge's cache.
    """
    file, first = _journal(run, judge.name), json.dumps(_fingerprint(answers, judge))
    lines = read_bytes(file).decode(errors="replace").split("\n")[:-1] if file.exists() else []
    if lines and not resume:
        raise InputError(f"{file} holds scores begun earlier; {GO_ON}")
    if lines and not _is_object(lines[0]):
        lines = []  # damaged from its beginning on: all are judged again, mostly from the judge's cache
    if lines and lines[0] != first:
        raise InputError(f"{file} is of other answers or another mode of the judge; {JUDGE_ANEW}")
    done: list[dict[str, Any]] = []
    for line in lines[1 : 1 + len(answers)]:
        judgement = _kept_judgement(line)
        if judgement is None:
            break
        done.append(judgement)
    with write_beside(file) as part:
        part.write_text("\n".join([first, *lines[1 : 1 + len(done)], ""]), encoding="utf-8")
    return done


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _kept_judgement(line: str) -> dict[str, Any] | None:
    """The judgement in a line of the journal; None where the line is damaged, or is to be judged again."""
    try:
        judgement = json.loads(line)
        numbers = [judgement["aligned"], judgement["coherent"], *judgement["topics"].values()]
        texts = [judgement["status"], judgement["reason"], judgement.get("raw", "")]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    is_whole = all(number is None or _number(number) is not None for number in numbers)
    is_whole = is_whole and all(isinstance(text, str) for text in texts)
    return judgement if is_whole and judgement["status"] not in JUDGED_AGAIN else None


def _scores(run: Run) -> pd.DataFrame:
    """The scores of all judges so far."""
    import pandas as pd

    return read_own_table(run.scores_file, SCORE_COLUMNS) if run.scores_file.exists() else pd.DataFrame({"judge": []})


def _is_finished(run: Run, answers: pd.DataFrame, judge: Judge, resume: bool) -> bool:
    """Whether this judge has judged every answer, and none of them has to be judged again."""
    scores = _scores(run)
    own = scores[scores["judge"] == judge.name]
    if own.empty:
        return False
    if not resume:
        raise InputError(f"{run.scores_file} has the scores of {judge.name} already; {GO_ON}")
    if not own[KEY].reset_index(drop=True).equals(answers[KEY]):
        raise InputError(f"{run.scores_file} has scores of {judge.name} for other answers; {JUDGE_ANEW}")
    return not own["status"].isin(JUDGED_AGAIN).any()


def _table(answers: pd.DataFrame, judge: Judge, done: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    judged = pd.DataFrame(done)
    topics = pd.json_normalize(judged.pop("topics")).astype(float) if done else pd.DataFrame()
    judged[["aligned", "coherent"]] = judged[["aligned", "coherent"]].astype(float)
    table = pd.concat([answers[KEY], judged, topics.set_axis(judged.index)], axis=1)
    table.insert(len(KEY), "judge", judge.name)
    table.insert(len(KEY) + 1, "mode", judge.mode)
    return table
