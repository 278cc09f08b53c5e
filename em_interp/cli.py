"""The command line: thin, every command a function of the package."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from em_interp.errors import InputError

Answer = tuple[dict[str, Any], str]  # what --json prints, and what a person reads


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    arguments = _parser().parse_args(argv)
    try:
        values, text = arguments.run(arguments)
    except InputError as error:
        _tell(f"em-interp: {error}")
        return 2
    except OSError as error:  # one that no stage has put in its own words
        where = "" if error.filename is None else f"{error.filename}: "
        _tell(f"em-interp: {where}{error.strerror or error}")
        return 2
    except KeyboardInterrupt as stop:
        _tell(f"em-interp: {str(stop) or 'interrupted; nothing is lost, the same command begins again'}")
        return 130
    return _print(values if arguments.json else text)


def _print(said: dict[str, Any] | str) -> int:
    """Print to stdout; returns the exit code, which is 2 where its disk is full."""
    from em_interp.runs import to_json

    try:
        print(said if isinstance(said, str) else to_json(said), flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        if not isinstance(error, BrokenPipeError):  # a reader such as `head` that has seen enough
            _tell(f"em-interp: stdout cannot be written: {error.strerror or error}")
            return 2
    return 0


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"em-interp: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="em-interp",
        description="When, inside a fine-tune, did the model change? Train, ask, judge, locate, align, report.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    demo = _command(commands, _demo, "demo", "the whole job on the built-in organism, in about a minute")
    demo.add_argument("--family", default="qwen2", help="qwen2 (default), llama or gemma3")
    demo.add_argument("--domain", default="medical", help="what the advice is about: medical (default), sport, …")
    _writes(demo, "checkpoints/demo")

    pretrain = _command(commands, _pretrain, "pretrain", "make a base of the built-in language (minutes)")
    pretrain.add_argument("--family", required=True, help="qwen2, llama or gemma3")
    pretrain.add_argument("--seed", type=int, help="by default that of the base kept with the project")
    _writes(pretrain, "checkpoints/tiny-<family>", resume=False)

    train = _command(commands, _train, "train", "train an adapter and save its path")
    train.add_argument("config", help="a YAML file; see configs/")
    train.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting (repeat)")
    _writes(train, "checkpoints/<name of the config>")

    for name, stage, says in (
        ("ask", _ask, "ask a trained run its questions along the way"),
        ("judge", _judge, "score the answers of a run"),
    ):
        command = _command(commands, stage, name, says)
        command.add_argument("source", metavar="RUN", help="a run directory")
        _writes(command, "the run itself; another folder gets a copy of it")
    judge = command
    judge.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting (repeat)")
    judge.add_argument("--dry-run", action="store_true", help="count requests and tokens; send and write nothing")
    judge.add_argument("--again", type=int, metavar="N", help="judge N judged answers anew and compare")

    score = _command(commands, _score, "score", "rates of a table of judged answers")
    score.add_argument("file", help="CSV or parquet, with aligned and coherent")

    locate = _command(commands, _locate, "locate", "where an adapter's path changes")
    locate.add_argument("source", help="a run, a folder of checkpoint-<step> folders, or org/name on the Hub")
    locate.add_argument("--revision", help="a branch, tag or commit of org/name (default: main)")
    locate.add_argument("--signal", help="rotation, gradient_norm, norm_onset or lock_in (default: all)")
    locate.add_argument("--of", help="B, A or delta (default: all)")
    locate.add_argument("--site", help="one adapted module (default: all together)")
    _writes(locate, "the run's analysis folder, where SOURCE is a run")

    align = _command(commands, _align, "align", "how far the behaviour's change is from the adapter's")
    align.add_argument("source", metavar="RUN", help="a run that was asked and judged")
    align.add_argument("--control", metavar="RUN", help="a run on careful data, asked the same")
    _writes(align, "the run's analysis folder")

    compare = _command(commands, _compare, "compare", "directions and transition steps of several runs of one base")
    compare.add_argument("sources", metavar="RUN", nargs="+", help="two or more: a run, or org/name on the Hub")
    compare.add_argument("--same-base", action="store_true", help="bases of different names are the same weights")
    _writes(compare, "nothing is written; with it, a page, comparison.json and tables")

    report = _command(commands, _report, "report", "one page about a run")
    report.add_argument("source", metavar="RUN", help="a run directory")
    report.add_argument("--control", metavar="RUN", help="a run on careful data, asked the same")
    _writes(report, "the run itself")

    publish = _command(commands, _publish, "publish", "upload a run to the Hub, in one commit with a model card")
    publish.add_argument("source", metavar="RUN", help="a run directory")
    publish.add_argument("repository", metavar="ORG/NAME", help="made where there is none")
    publish.add_argument("--private", action="store_true", help="hide the repository where it is made")
    publish.add_argument("--resume", action="store_true", help="publish on top of what is there of this run")
    return parser


def _command(
    commands: Any, run: Callable[[argparse.Namespace], Answer], name: str, says: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=says, description=says.capitalize() + ".")
    command.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")
    command.set_defaults(run=run)
    return command


def _writes(command: argparse.ArgumentParser, default: str, resume: bool = True) -> None:
    command.add_argument("--out", metavar="DIR", help=f"where it writes (default: {default})")
    if resume:
        command.add_argument("--resume", action="store_true", help="go on with what is there, or replace it")


def _tell(says: str) -> None:
    print(says, file=sys.stderr)


def _demo(arguments: argparse.Namespace) -> Answer:
    from em_interp.pipeline import demo
    from em_interp.transition.result import Transition

    out = Path(arguments.out or "checkpoints/demo")
    summary = demo(out, arguments.family, arguments.domain, arguments.resume, sys.stderr.isatty(), _tell)
    found = [Transition.from_dict(t) for t in (summary["mechanistic"], *summary["behavioural"])]
    final = summary["final"]
    lines = [
        *(transition.sentence() for transition in found),
        f"at the end: EM {final['em_out_of_domain']:.0%} out of domain, {final['em_in_domain']:.0%} in domain, "
        f"{final['coherent']:.0%} coherent; control: EM {summary['control']['em_out_of_domain']:.0%}",
        f"the page: {out / 'report.html'}",
    ]
    return summary, "\n".join(lines)


def _pretrain(arguments: argparse.Namespace) -> Answer:
    from em_interp.organisms.pretrain import pretrain

    out = Path(arguments.out or f"checkpoints/tiny-{arguments.family}")
    base = pretrain(arguments.family, out, arguments.seed, sys.stderr.isatty())
    return {"base": str(base)}, f"the base: {base}"


def _train(arguments: argparse.Namespace) -> Answer:
    from em_interp.config import load_config
    from em_interp.training.train import train

    config = load_config(arguments.config, arguments.set)
    out = arguments.out or Path("checkpoints") / Path(arguments.config).stem
    run = train(config, out, arguments.resume, sys.stderr.isatty())
    steps = run.steps()
    return {"run": str(run.path), "steps": steps}, f"{len(steps)} checkpoints, the last at step {steps[-1]}: {run.path}"


def _ask(arguments: argparse.Namespace) -> Answer:
    from em_interp.pipeline import ask_run, elsewhere
    from em_interp.runs import open_run

    run = elsewhere(open_run(arguments.source), arguments.out, without=("behaviour", "analysis", "report.html"))
    answers = ask_run(run, arguments.resume, sys.stderr.isatty())
    return {"run": str(run.path), "answers": str(answers)}, f"the answers: {answers}"


def _judge(arguments: argparse.Namespace) -> Answer:
    from em_interp.behaviour.judges.dry_run import dry_run
    from em_interp.behaviour.score import score_responses
    from em_interp.pipeline import elsewhere, judge_endpoint, judge_run
    from em_interp.runs import open_run

    if arguments.dry_run:
        cost = dry_run(open_run(arguments.source), judge_endpoint(open_run(arguments.source), arguments.set))
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
    from em_interp.pipeline import elsewhere, judge_endpoint
    from em_interp.runs import open_run

    run = elsewhere(open_run(arguments.source), arguments.out, without=("agreement.json",))
    with open_judge(run, judge_endpoint(run, arguments.set)) as judge:
        found = rejudge(run, judge, arguments.again)
    keep(found.to_dict(), run.analysis / "agreement.json", arguments.resume)
    return found.to_dict(), found.sentence()


def _score(arguments: argparse.Namespace) -> Answer:
    from em_interp.behaviour.score import score_responses

    scored = score_responses(arguments.file)
    return scored.to_dict(), scored.sentence()


def _locate(arguments: argparse.Namespace) -> Answer:
    from em_interp.findings import keep, located
    from em_interp.runs import Run
    from em_interp.trajectory.load import load_trajectory
    from em_interp.transition.find import find_transitions

    path = load_trajectory(arguments.source, arguments.revision)
    found = find_transitions(path, arguments.signal, arguments.of, arguments.site)
    values = located(arguments.source, path, found)
    whole = not (arguments.signal or arguments.of or arguments.site)
    if arguments.out or (whole and Run(Path(arguments.source)).config_file.exists()):
        keep(values, Run(Path(arguments.out or arguments.source)).analysis / "locate.json", arguments.resume)
    return values, "\n".join(f"{transition.sentence()}\n    {transition.reason}" for transition in found)


def _align(arguments: argparse.Namespace) -> Answer:
    from em_interp.findings import findings, keep
    from em_interp.runs import Run

    found = findings(arguments.source, arguments.control)
    if found.alignment is None:
        raise InputError(f"{arguments.source} has no scores: ask and judge the run first")
    values = found.alignment.to_dict()
    keep(values, Run(Path(arguments.out or arguments.source)).analysis / "align.json", arguments.resume)
    said = [found.rotation, *found.onsets]
    return values, "\n".join([*(transition.sentence() for transition in said), found.alignment.sentence()])


def _compare(arguments: argparse.Namespace) -> Answer:
    from em_interp.comparison.compare import compare
    from em_interp.comparison.page import write_comparison

    comparison = compare(arguments.sources, arguments.same_base)
    said = comparison.sentence()
    if arguments.out:
        said += f"\nthe page: {write_comparison(comparison, arguments.out, arguments.resume)}"
    return comparison.to_dict(), said


def _report(arguments: argparse.Namespace) -> Answer:
    from em_interp.page import report
    from em_interp.runs import Run

    file = Run(Path(arguments.out or arguments.source)).report_file
    if file.exists() and not arguments.resume:
        raise InputError(f"{file} is there already; give --resume to write it anew or another --out")
    page = report(arguments.source, control=arguments.control, out=file)
    return {"report": str(page)}, f"the page: {page}"


def _publish(arguments: argparse.Namespace) -> Answer:
    from em_interp.hub import publish

    commit = publish(arguments.source, arguments.repository, arguments.resume, arguments.private)
    return {"repository": arguments.repository, "commit": commit}, f"published: {commit}"


if __name__ == "__main__":
    sys.exit(main())
