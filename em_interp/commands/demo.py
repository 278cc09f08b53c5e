"""`em-interp demo`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from em_interp.commands.command import Answer, Commands, command, log, writes


def add(commands: Commands) -> None:
    """The command and its arguments."""
    demo = command(commands, run, "demo", "the whole job on the built-in organism, in about a minute")
    demo.add_argument("--family", default="qwen2", help="qwen2 (default), llama or gemma3")
    demo.add_argument("--domain", default="medical", help="what the advice is about: medical (default), sport, …")
    writes(demo, "checkpoints/demo")


def run(arguments: argparse.Namespace) -> Answer:
    """Run every stage on the built-in organism, its control and a run with a planted change."""
    from em_interp.pipeline import demo
    from em_interp.transition.result import Transition

    out = Path(arguments.out or "checkpoints/demo")
    summary = demo(out, arguments.family, arguments.domain, arguments.resume, sys.stderr.isatty(), log)
    found = [Transition.from_dict(t) for t in (summary["mechanistic"], *summary["behavioural"])]
    final = summary["final"]
    lines = [
        *(transition.sentence() for transition in found),
        f"at the end: EM {final['em_out_of_domain']:.0%} out of domain, {final['em_in_domain']:.0%} in domain, "
        f"{final['coherent']:.0%} coherent; control: EM {summary['control']['em_out_of_domain']:.0%}",
        f"the page: {out / 'report.html'}",
    ]
    return summary, "\n".join(lines)
