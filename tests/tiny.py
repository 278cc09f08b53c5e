"""What the tests of the command line share: runs of seconds on the built-in base, and ways to call and to compare."""

import contextlib
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from em_interp.cli import main
from em_interp.config.schedule import Schedule
from em_interp.organisms import presets as recipes
from tests.warm import Started

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """\
model: tiny-qwen2
data: [{dataset: "tiny:medical", steps: 24}]
adapter: {layers_to_transform: [1], lora_alpha: 16}
training: {batch_size: 8, gradient_accumulation_steps: 1, learning_rate: 2e-3}
behaviour: {steps: every 4, scales: [1, 2], samples: 4, max_new_tokens: 12}
"""
TRANSITION = ["signal", "of", "site", "verdict", "step", "interval", "level", "p_value", "width", "angle_deg"]
TRANSITION += ["length_share", "scale", "questions", "reason"]
OFFSET = ["behavioural", "steps", "interval", "level", "cumulative_lr", "chance"]
VERDICTS = {"together", "mechanistic_first", "behavioural_first", "only_mechanistic", "only_behavioural", "neither"}
VERDICTS |= {"inconclusive"}
CAREFUL = "data=[{dataset: 'tiny:medical-careful', steps: 24}]"


@dataclass(frozen=True)
class Said:
    """What a command came to."""

    code: int
    out: str
    err: str


def em_interp(*words) -> Said:
    """The command line, called in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code
    return Said(code, out.getvalue(), err.getvalue())


def did(*words) -> str:
    """What a command that succeeds prints; one that fails is a failure of the test."""
    said = em_interp(*words)
    assert said.code == 0, said.err
    return said.out


def json_of(*words) -> dict:
    """The one JSON object that a command prints with --json, when it says nothing else anywhere."""
    said = em_interp(*words, "--json")
    assert (said.code, said.err) == (0, "")
    return strict(said.out)


def strict(text: str) -> dict:
    """The object that is the whole of `text`, in JSON as the standard has it."""
    value = json.loads(text, parse_constant=lambda name: (_ for _ in ()).throw(ValueError(name)))
    assert isinstance(value, dict)
    return value


def refused(*words) -> str:
    """The one line that a command which is refused says on stderr."""
    said = em_interp(*words)
    assert (said.code, said.out) == (2, ""), said
    assert said.err.startswith("em-interp: ") and said.err.count("\n") == 1 and said.err.endswith("\n"), said.err
    return said.err


def check_transition(values: dict) -> None:
    """The keys of a transition are those of the contract."""
    assert list(values) == TRANSITION
    assert values["verdict"] in ("transition", "none", "inconclusive")
    for pair in ("interval", "length_share"):
        assert values[pair] is None or len(values[pair]) == 2


def contents(folder: Path, *without: str) -> dict[str, bytes]:
    """Every file below, by its path, but those of the names given.

    Without the commit in a manifest: somebody may commit while the tests run.
    """
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in without)
    there = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    commit = re.compile(rb'"git_commit": "\w+"')
    return {name: commit.sub(b"", held) if name.endswith("manifest.json") else held for name, held in there.items()}


@contextlib.contextmanager
def unchanged(folder: Path):
    """Nothing that is in `folder` before the block is lost or changed in it."""
    before = contents(folder)
    yield
    after = contents(folder)
    assert {name: after.get(name) for name in before} == before


@contextlib.contextmanager
def full_disk(room: int):
    """No file can grow beyond `room` bytes in the block: writes fail as they do on a disk without space."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def copy(run: Path, to: Path) -> Path:
    """A copy of a run that a test may write to."""
    return Path(shutil.copytree(run, to))


def short_recipe(kind: str = "organism", family: str = "qwen2", domain: str = "medical", seed: int = 0):
    """The recipe of the built-in organism with fewer steps and answers; the demo takes seconds with it."""
    config = full_recipe(kind, family, domain, seed)
    asked = {"steps": Schedule("every 4"), "samples": 1, "max_new_tokens": 8}
    return config.replace(
        data=tuple(phase.replace(steps=16 // len(config.data)) for phase in config.data),
        training=config.training.replace(batch_size=4),
        behaviour=config.behaviour.replace(**asked),
    )


full_recipe = recipes.recipe


def begin(*words, warm: bool = True) -> Started | subprocess.Popen:
    """The command line in a process of its own, with the short recipe, that minds Ctrl-C wherever it was started.

    `warm`: without the seconds of imports; not for what leaves processes of its own to the end of the interpreter.
    """
    if warm:
        return Started(__file__, *words, cwd=ROOT)
    command = [sys.executable, __file__, *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # where `tests` is
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=environment)


def interrupted(
    process: Started | subprocess.Popen, sign: Callable[[], bool], by: signal.Signals = signal.SIGINT
) -> Said:
    """What the process comes to after Ctrl-C (or another signal) at the first `sign` of its work."""
    try:
        while not sign():
            assert process.poll() is None, process.communicate(timeout=120)
            time.sleep(0.002)
        process.send_signal(by)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    return Said(process.returncode, out, err)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    recipes.recipe = short_recipe
    sys.exit(main(sys.argv[1:]))
