"""`em-interp judge RUN`."""

from __future__ import annotations

import argparse
import sys

from em_interp.commands.command import Answer, Commands, command, writes


def add(commands: Commands) -> None:
    """The command and its arguments."""
    judge = command(commands, run, "judge", "score the answers of a run")
    judge.add_argument("source", metavar="RUN", help="a run directory")
    writes(judge, "the run itself; another folder gets a copy of it")
    judge.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting (repeat)")
    judge.add_argument("--dry-run", action="store_true", help="count requests and tokens; send and write nothing")
    judge.add_argument("--again", type=int, metavar="N", help="judge N judged answers anew and compare")


def run(arguments: argparse.Namespace) -> Answer:
    """Judge, or count what judging would cost, or judge a sample again."""
    from em_interp.behaviour.judges.dry_run import dry_run
    from em_interp.behaviour.score import score_responses
    from em_interp.pipeline import elsewhere, judge_endpoint, judge_prompts, judge_run
    from em_interp.runs import open_run

    if arguments.dry_run:
        asked = open_run(arguments.source)
        cost = dry_run(asked, judge_endpoint(asked, arguments.set), judge_prompts(asked, arguments.set))
        return cost.to_dict(), cost.sentence()
    if arguments.again is not None:
        return _judge_again(arguments)
    run = elsewhere(open_run(arguments.source), arguments.out, without=("scores.*", "analysis", "report.html"))
    scores = judge_run(run, arguments.resume, sys.stderr.isatty(), arguments.set)
    scored = score_responses(scores)
    values = {"run": str(run.path), "scores": str(scores), "unscored": scored.unscored}
    return values, f"{scored.sentence()}\nthe scores: {scores}"


def _judge_again(arguments: argparse.Namespace) -> Answer:
    from em_interp.behaviour.judges.agreement import rejudge
    from em_interp.behaviour.judges.openai_judge import open_judge
    from em_interp.findings import keep
    from em_interp.pipeline import elsewhere, judge_endpoint, judge_prompts
    from em_interp.runs import open_run

    run = elsewhere(open_run(arguments.source), arguments.out, without=("agreement.json",))
    with open_judge(run, judge_endpoint(run, arguments.set), judge_prompts(run, arguments.set)) as judge:
        found = rejudge(run, judge, arguments.again)
    keep(found.to_dict(), run.analysis / "agreement.json", arguments.resume)
    return found.to_dict(), found.sentence()
