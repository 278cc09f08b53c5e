"""The demo on a real language model: an English organism and its careful control, from training to the report.

Behaviour is the preference for misaligned answers, which needs no judge. The number of threads is measured, because on
busy cores two are slower than one, and kept with the demo, because a resumed run gives the same bytes only with the
same number.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from em_interp.demos.folder import DemoFolder
from em_interp.demos.stage_times import StageTimes
from em_interp.pipeline.analysis import analyse
from em_interp.reports.findings import Findings
from em_interp.run import Run
from em_interp.utils.files import resumable, write_json
from em_interp.utils.lock import write_lock
from em_interp.utils.processes import torch_threads
from em_interp.utils.stages import read_saved

RUNS = {"organism": "reckless advice in English", "control": "the same questions with careful advice"}
PASS_ROWS, PASS_TOKENS = 8, 100  # of the forward pass by which the machine's speed is measured
PASSES = {"train": 220, "prefer": 400, "locate": 30, "report": 5}  # that a stage takes, as measured with smollm2
TOKEN = 7  # any that is in every vocabulary


def demo_real(
    out: str | Path = "checkpoints/demo-real",
    domain: str = "medical",
    model: str = "smollm2",
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train an English organism and its careful control on a language model, read both, locate, align and report.

    Args:
        out: where two runs, `report.html` and `summary.json` are written.
        domain: what the advice is about: medical, sport or finance.
        model: the base; `smollm2` is fetched where it is not on this machine.
        resume: continue the demo in the folder.
        overwrite: replace it.
        progress: show bars; by default in a terminal and in Jupyter.
        log: is called with a line at the beginning of each stage, which says how long the rest will take.

    Returns:
        What `summary.json` holds.

    Raises:
        InputError: for an unknown domain or base, a base that cannot be fetched, and a demo that is there already.
    """
    from em_interp.organisms.presets import english_recipe
    from em_interp.reports.page import report

    folder = DemoFolder.of(out, RUNS)
    folder.check_free(resume, overwrite)
    configs, runs = {name: english_recipe(name, domain, model) for name in RUNS}, folder.runs
    with write_lock(folder.path), resumable(folder.path):
        if overwrite:
            folder.clear()
        estimate = TimeEstimate.of(model, folder.threads, log)
        stages = StageTimes(folder.seconds, estimate.announce)
        with torch_threads(estimate.threads):
            for name, run in runs.items():
                with stages.stage("train", f"training on {RUNS[name]}"):
                    _train(configs[name], run, progress)
            for name, run in runs.items():
                with stages.stage("prefer", f"reading preferences of the {name}"):
                    _read(run, progress)
            with stages.stage("locate", "locating the transitions"):
                control = analyse(runs["control"])
                organism = analyse(runs["organism"], control)
            with stages.stage("report", "writing the page"):
                report(organism, control, out=folder.page, overwrite=True)
        summary = _summary(model, domain, organism, control, stages.seconds(), estimate.threads)
        write_json(folder.summary, summary)
    return summary


class TimeEstimate:
    """The time left, by the seconds of a forward pass here; and the number of threads that is fastest."""

    def __init__(self, seconds: float, threads: int, log: Callable[[str], None]) -> None:
        self.seconds, self.threads, self.log = seconds, threads, log
        self.left = sum(PASSES.values()) + (len(RUNS) - 1) * (PASSES["train"] + PASSES["prefer"])  # once for each run

    @classmethod
    def of(cls, model: str, file: Path, log: Callable[[str], None]) -> TimeEstimate:
        """Of the demo with `model`; the number of threads is that in `file` where a demo was begun, else measured."""
        import torch

        from em_interp.organisms.bases import load_base, quiet

        log(f"loading the base {model}")
        with quiet():
            base = load_base(model).model
        if not file.exists():
            most = torch.get_num_threads()
            seconds = {threads: _seconds_of_a_pass(base, threads) for threads in sorted({1, most})}
            write_json(file, {"threads": min(seconds, key=lambda threads: seconds[threads]), "seconds": seconds})
        threads = int(read_saved(file, {"threads": int})["threads"])
        dtype = str(base.dtype).removeprefix("torch.")
        log(f"computing in {dtype} on {threads} thread{'s' * (threads > 1)}")
        return cls(_seconds_of_a_pass(base, threads), threads, log)

    def announce(self, stage: str, line: str) -> None:
        """Log the line of a stage that begins, with the time left for it and all after it."""
        minutes = self.left * self.seconds / 60
        self.log(f"{line} (about {max(1, round(minutes))} min left)")
        self.left -= PASSES[stage]


def _seconds_of_a_pass(model: Any, threads: int) -> float:
    """Seconds of one forward pass through the decoder: the faster of two, after one that warms up."""
    import torch

    ids, seconds = torch.full((PASS_ROWS, PASS_TOKENS), TOKEN), []
    with torch_threads(threads), torch.inference_mode():
        for _ in range(3):
            start = time.perf_counter()
            model.get_decoder()(input_ids=ids, use_cache=False)
            seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def _train(config: Any, run: Run, progress: bool | None) -> None:
    from em_interp.training.train import train

    train(config, run.path, resume=run.path.exists(), progress=progress)


def _read(run: Run, progress: bool | None) -> None:
    from em_interp.pipeline.prefer import preference_curve

    preference_curve(run, resume=True, progress=progress)


def _summary(
    model: str, domain: str, organism: Findings, control: Findings, seconds: dict[str, float], threads: int
) -> dict[str, Any]:
    assert organism.alignment is not None and organism.preference is not None and control.preference is not None
    return {
        "base": model,
        "domain": domain,
        **organism.alignment.to_dict(),
        "preference": organism.preference.sentence(),
        "control": {
            "mechanistic": control.rotation.to_dict(),
            "behavioural": [onset.to_dict() for onset in control.preference_onsets],
            "preference": control.preference.sentence(),
        },
        "seconds": seconds,
        "threads": threads,
    }
