"""`em-interp judge RUN`, and `em-interp judge FILE` for answers that come as a table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from em_interp.commands.command import Answer, Commands, command, writes
from em_interp.run import Run, open_run

if TYPE_CHECKING:
    import pandas as pd


def add(commands: Commands) -> None:
    """The command and its arguments."""
    judge = command(commands, run, "judge", "score the answers of a run, or of a table")
    judge.add_argument("source", metavar="RUN", help="a run directory; or a CSV or parquet with question and answer")
    writes(judge, "the run itself, another folder gets a copy of it; of a table, <its name>-judged beside it")
    judge.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting (repeat)")
    instead = judge.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="count requests and tokens; send and write nothing")
    instead.add_argument("--again", type=int, metavar="N", help="judge N judged answers anew and compare")


def run(arguments: argparse.Namespace) -> Answer:
    """Judge, or count what judging would cost, or judge a sample again."""
    from em_interp.behaviour.judge import commonest_cause
    from em_interp.behaviour.judge_checks import dry_run
    from em_interp.behaviour.scores import score_responses
    from em_interp.pipeline import judge_endpoint, judge_name, judge_prompts, judge_run

    if arguments.dry_run:
        asked, answers = _not_yet_judged(arguments)
        cost = dry_run(asked, judge_endpoint(asked, arguments.set), judge_prompts(asked, arguments.set), answers)
        return cost.to_dict(), cost.sentence()
    if arguments.again is not None:
        return _judge_again(arguments)
    run = _place(arguments, ("scores.*", "analysis", "report.html"))
    scores = judge_run(run, arguments.resume, sys.stderr.isatty(), arguments.set)
    scored = score_responses(scores, judge=judge_name(run, arguments.set))
    values = {"run": str(run.path), "scores": str(scores), "unscored": scored.unscored}
    lines = [scored.sentence(), commonest_cause(scored.answers), f"the scores: {scores}"]
    return values, "\n".join(line for line in lines if line)


def _judge_again(arguments: argparse.Namespace) -> Answer:
    from em_interp.behaviour.judge_checks import retest
    from em_interp.behaviour.llm_judge import open_judge
    from em_interp.findings import keep
    from em_interp.pipeline import judge_endpoint, judge_prompts

    run = _place(arguments, ("retest.json",))
    with open_judge(run, judge_endpoint(run, arguments.set), judge_prompts(run, arguments.set)) as judge:
        found = retest(run, judge, arguments.again)
    keep(found.to_dict(), run.analysis / "retest.json", arguments.resume)
    return found.to_dict(), found.sentence()


def _table(arguments: argparse.Namespace) -> tuple[Path, Path] | None:
    """The table and the folder for its scores, where the source is a table."""
    source = Path(arguments.source)
    if not source.is_file():
        return None
    return source, Path(arguments.out or source.with_name(f"{source.stem}-judged"))


def _asked(source: str) -> Run:
    """The run, or the folder that judging a table has made."""
    run = Run(Path(source))
    return run if run.answers_file.exists() else open_run(source)


def _place(arguments: argparse.Namespace, without: tuple[str, ...]) -> Run:
    """The run that is judged and written to; `without` is what no copy of a run takes along."""
    from em_interp.behaviour.answer_tables import adopt
    from em_interp.pipeline import judge_endpoint
    from em_interp.run import elsewhere

    table = _table(arguments)
    if table is None:
        return elsewhere(_asked(arguments.source), arguments.out, without)
    judge_endpoint(Run(table[1]), arguments.set)  # refuses what cannot judge a table before anything is written
    return adopt(*table)


def _not_yet_judged(arguments: argparse.Namespace) -> tuple[Run, pd.DataFrame | None]:
    """The run as it is, and the answers where they are in no run yet."""
    from em_interp.behaviour.answer_tables import read_answers

    table = _table(arguments)
    return (_asked(arguments.source), None) if table is None else (Run(table[1]), read_answers(table[0]))
