"""Hostile input for every reader and every command that takes a file: what comes of it, and whether anything gets out.

A case is a folder with a valid file, or a whole run, that is spoilt by a seeded mutation or written by a grammar of
what is odd (deep nesting, half characters, escapes, numbers out of range, names that lead elsewhere, links, pipes), and
a command that reads it. It runs in a forked process with limits, and is wrong where

- it ends with a traceback or another exit code than 0, 1 or 2, or in more than one line that says why;
- it takes more than five seconds of processor time, or a gigabyte more than it began with;
- it writes, renames or removes anything outside its folder, starts a process, unpickles or opens a connection;
- a control character, or a sign that turns the direction of text, reaches stdout or stderr as it is.

python benchmarks/hostile.py 1000 [--seed S] [--kinds table,run] [--record cases.jsonl] [--case KIND:SEED] [--fresh]

Seeds are new at each run and printed with what is wrong; `--case` repeats one and keeps its folder. `--fresh` carries
each case out a second time in a new Python and compares the exit codes and what was said. Forks are three times as
quick with PYTHONMALLOC=malloc GLIBC_TUNABLES=glibc.malloc.hugetlb=1.
"""

import argparse
import collections
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from hostile_kinds import KINDS
from isolated import called, ended, forked, import_all, make_stock, write

MAX_SECONDS, MAX_WALL = 5.0, 90.0  # of the processor; until a case counts as hanging
MAX_BYTES = 2**30  # more than a case begins with
MAX_FILE = 2**28  # bytes that a case may write to one file
MAX_LINE = 1000
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@dataclass
class Outcome:
    """What a case came to."""

    kind: str
    seed: int
    words: list
    code: int | str | None = None
    seconds: float = 0.0
    megabytes: float = 0.0
    wrong: list = field(default_factory=list)


def attempt(name, seed, stock, folder, keep=False):
    """The outcome of one case, which runs in a process of its own."""
    outcome = Outcome(name, seed, prepared(name, seed, stock, folder))
    before = outside(folder)
    _wait(forked(lambda: _child(outcome.words, folder / "box", folder), folder), outcome)
    _judge(outcome, folder)
    if outside(folder) != before:
        outcome.wrong.append("something outside its folder has changed")
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome


def prepared(name, seed, stock, folder):
    """Write what a case begins with; returns the words of its command."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "box").mkdir(parents=True)
    write(folder / "outside/precious", "precious")
    rng = random.Random(f"{name} {seed}")
    words = KINDS[name][0](rng, folder / "box", stock)
    return [*words, "--json"] if rng.random() < 0.15 and words[:1] != ["card"] else words


def attempt_afresh(name, seed, stock, folder):
    """The outcome of one case, wrong where a new Python comes to another end or says something else."""
    outcome = attempt(name, seed, stock, folder, keep=True)
    said = [(folder / place).read_bytes() for place in ("out", "err")]
    words = prepared(name, seed, stock, folder)
    places = {"TMPDIR": ".tmp", "EM_INTERP_CACHE": ".tmp/cache", "HF_HOME": ".tmp/hf"}
    (folder / "box/.tmp").mkdir()
    environment = os.environ | {name: str(folder / "box" / place) for name, place in places.items()}
    command = [sys.executable, "-m", "em_interp", *words]
    done = subprocess.run(
        command, cwd=folder / "box", env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if words[0] != "card" and (done.returncode, done.stdout, done.stderr) != (outcome.code, *said):
        outcome.wrong.append(
            f"a new Python ends with {done.returncode}: {done.stderr[-300:]!r}, not {said[1][-300:]!r}"
        )
    return outcome


def outside(folder):
    """What is beside the box."""
    places = [
        path
        for path in sorted(folder.rglob("*"))
        if path.relative_to(folder).parts[0] not in ("box", "out", "err", "audit", "grown")
    ]
    return [(str(path), path.read_bytes() if path.is_file() else None) for path in places]


def _wait(pid, outcome):
    """The exit code, processor time and memory of the child; killed where it hangs."""
    outcome.code, usage, hung = ended(pid, MAX_WALL)
    if hung:
        outcome.code = "hang"
        outcome.wrong.append(f"still running after {MAX_WALL:g} s")
        return
    outcome.seconds = usage.ru_utime + usage.ru_stime


def _child(words, box, folder):
    """The exit code of the command, with limits and an audit."""
    os.chdir(box)
    place = box / ".tmp"
    place.mkdir()
    tempfile.tempdir = str(place)
    os.environ |= {"TMPDIR": str(place), "EM_INTERP_CACHE": str(place / "cache"), "HF_HOME": str(place / "hf")}
    before, limit = memory("VmRSS"), memory("VmSize") + 2 * MAX_BYTES
    for name, most in ((resource.RLIMIT_AS, limit), (resource.RLIMIT_CPU, 60), (resource.RLIMIT_FSIZE, MAX_FILE)):
        resource.setrlimit(name, (most, most))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    audit(box, os.open(folder / "audit", os.O_WRONLY | os.O_CREAT, 0o600))
    code = command(words)
    (folder / "grown").write_text(str(memory("VmHWM") - before))
    return code


def command(words):
    """The exit code of a command; `card` is the page that publish would upload, and the files beside it."""
    from em_interp.errors import InputError
    from em_interp.hub.publishing import _files_to_publish, model_card
    from em_interp.run import open_run

    if words[0] != "card":
        return called(words)
    try:
        run = open_run(words[1])
        list(_files_to_publish(run))
        model_card(run, "a/b")
    except InputError as error:
        print(f"em-interp: {error}", file=sys.stderr)
        return 2
    return 0


def memory(name):
    """Bytes of this process, as the kernel counts them."""
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


REPORTS = []


def report(line):
    """Note something wrong for the parent."""
    os.write(REPORTS[0], (line.replace("\n", " ")[:300] + "\n").encode("utf-8", "replace"))


PLACES = {"os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.mkdir": 1, "os.truncate": 1, "os.chmod": 1, "os.utime": 1}
MADE = ("os.link", "os.symlink")  # whose second argument is the new place
NEVER = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "socket.connect")
EXPECTED = ("'rev-parse'", "'uname', '-p'", "127.0.0.1")  # the commit of a run; the machine, for openai; the judge's


def audit(box, descriptor):
    """From here on what this process opens for writing, changes or starts is looked at."""
    REPORTS.append(descriptor)
    root = box.resolve()
    busy = threading.local()

    def hook(event, arguments):
        if getattr(busy, "on", False) or event not in ("open", *PLACES, *MADE, *NEVER):
            return
        busy.on = True
        try:
            if event in NEVER:
                if not any(word in str(arguments) for word in EXPECTED):
                    report(f"{event} {arguments!r}")
                return
            places = arguments[1:2] if event in MADE else arguments[: PLACES.get(event, 1)]
            if event == "open" and not (
                isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            ):
                return
            follows = event == "open" and not arguments[2] & os.O_NOFOLLOW
            for place in places:
                if isinstance(place, (str, bytes, os.PathLike)):
                    check_place(event, os.fsdecode(place), root, follows)
        finally:
            busy.on = False

    sys.addaudithook(hook)


def check_place(event, place, root, follows):
    """A file is looked up through its folder's links, and through its own where it is opened and that is followed."""
    with suppress(ValueError):
        path = Path(place).absolute()
        real = path.resolve() if follows else path.parent.resolve() / path.name
        if not (real.is_relative_to(root) or real == root.parent / "grown" or str(real) in ("/dev/null", "/dev/tty")):
            report(f"{event} outside its folder: {place}")


def _judge(outcome, folder):
    """Add what is wrong to an outcome."""
    texts = {
        name: (folder / name).read_bytes().decode("utf-8", "replace") if (folder / name).exists() else ""
        for name in ("out", "err", "audit")
    }
    out, err, wrong = texts["out"], texts["err"], outcome.wrong
    if (folder / "grown").exists():
        outcome.megabytes = int((folder / "grown").read_text()) / 2**20
    wrong += sorted(set(texts["audit"].splitlines()))
    if "Traceback (most recent call last)" in err:
        wrong.append(f"traceback: {where(err)}")
    elif outcome.code == 2:
        last = err.rstrip("\n").split("\n")[-1]
        if not last.startswith("em-interp: ") or len(last) > MAX_LINE:
            wrong.append(f"no line that says why: {last[:150]!r}, {len(last)} characters")
    elif outcome.code not in (0, 1, "hang"):
        wrong.append(f"exit code {outcome.code}: {err[-150:]!r}")
    if found := CONTROL.search(out + err):
        wrong.append(
            f"control character {found[0]!r} in {(out + err)[max(0, found.start() - 40) : found.start() + 20]!r}"
        )
    if "Warning:" in err and "Traceback" not in err:
        wrong.append(f"warning: {next(line for line in err.splitlines() if 'Warning:' in line)[:200]}")
    if "--json" in outcome.words and outcome.code == 0:
        try:
            json.loads(out, parse_constant=lambda name: (_ for _ in ()).throw(ValueError(name)))
        except ValueError as error:
            wrong.append(f"--json is no JSON: {error}")
    if outcome.seconds > MAX_SECONDS:
        wrong.append(f"took {outcome.seconds:.1f} s of the processor")
    if outcome.megabytes > MAX_BYTES / 2**20:
        wrong.append(f"took {outcome.megabytes:.0f} MB")


def where(err):
    """The error of a traceback, and the last place in the package that it came through."""
    places = re.findall(r'File "[^"]*?(em_interp/[^"]+)", line (\d+), in (\S+)', err)
    error = next((line for line in reversed(err.splitlines()) if line and not line.startswith(" ")), "")
    return f"{error[:160]} at {':'.join(places[-1]) if places else '?'}"


def run_cases(cases, stock, folder, kinds, seed, record=None, one=attempt):
    """The outcomes of so many cases; each is a line of the record."""
    rng, outcomes = random.Random(seed), []
    names, weights = kinds, [KINDS[name][1] for name in kinds]
    for _ in range(cases):
        name = rng.choices(names, weights)[0]
        outcome = one(name, rng.randrange(2**48), stock, folder)
        outcomes.append(outcome)
        if outcome.wrong:
            line = f"{outcome.kind}:{outcome.seed} {outcome.words} -> {'; '.join(outcome.wrong)}"
            print(line[:600].encode("ascii", "backslashreplace").decode(), flush=True)
        if record:
            with Path(record).open("a") as file:
                file.write(json.dumps(vars(outcome) | {"words": [w[:80] for w in outcome.words]}) + "\n")
    return outcomes


def summary(outcomes):
    """A table: cases by kind, how many were wrong, refused and read, the longest and the largest."""
    lines = [
        "| input | cases | refused in one line | read | wrong | longest s | most MB |",
        "|---|---|---|---|---|---|---|",
    ]
    by_kind = collections.defaultdict(list)
    for outcome in outcomes:
        by_kind[outcome.kind].append(outcome)
    for name, of_kind in [*sorted(by_kind.items()), ("all", outcomes)]:
        refused, read = (sum(o.code == code for o in of_kind) for code in (2, 0))
        wrong, longest = sum(bool(o.wrong) for o in of_kind), max(o.seconds for o in of_kind)
        most = max(o.megabytes for o in of_kind)
        lines.append(f"| {name} | {len(of_kind)} | {refused} | {read} | {wrong} | {longest:.1f} | {most:.0f} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=int, nargs="?", default=1000)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--record", help="a JSON-lines file to which each case is added")
    parser.add_argument("--stock", type=Path, help="where what the cases begin with is kept; default: made anew")
    parser.add_argument("--case", help="KIND:SEED of one case to repeat")
    parser.add_argument("--fresh", action="store_true", help="compare with a new Python")
    parser.add_argument("--folder", type=Path, help="where the cases are; default: temporary")
    given = parser.parse_args()
    import_all()
    with tempfile.TemporaryDirectory() as temporary:
        stock = given.stock or Path(temporary) / "stock"
        if not (stock / "base.gguf").exists():
            shutil.rmtree(stock, ignore_errors=True)
            make_stock(stock)
        folder = (given.folder or Path(temporary)) / f"case-{os.getpid()}"
        if given.case:
            name, seed = given.case.split(":")
            outcome = attempt(name, int(seed), stock.absolute(), folder.absolute(), keep=True)
            print(outcome, *((folder / name).read_text(errors="backslashreplace") for name in ("out", "err")), sep="\n")
            return
        seed = random.SystemRandom().randrange(2**32) if given.seed is None else given.seed
        print(f"seed {seed}", flush=True)
        begun = time.monotonic()
        one = attempt_afresh if given.fresh else attempt
        places = (stock.absolute(), folder.absolute())
        outcomes = run_cases(given.cases, *places, given.kinds.split(","), seed, given.record, one)
        print(summary(outcomes), f"{time.monotonic() - begun:.0f} s", sep="\n")


if __name__ == "__main__":
    main()
