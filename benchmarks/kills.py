"""Stages that are killed, at each of their write points or at random moments, or raced by several processes on one run.

Every stage runs once undisturbed; then again and again in fresh folders, in forked processes that SIGKILL themselves
before the k-th change of a file or folder (opened for writing, renamed, removed, made), or that a timer of processor
time ends anywhere. The stage is then resumed. What must hold: the resumed command succeeds, without a traceback, and
every file of the folder has the same bytes as after the undisturbed run, so that no item is lost and none is there
twice. In a race two to four processes start the same or different stages on one run within a fraction of a second; each
must succeed or be refused in one line, and after a resume the bytes are the same.

python benchmarks/kills.py kills 100 | races 50 | points | digests [--stages train,ask] [--seed S] [--record FILE]

`points` kills once at every write point of every stage. `digests` prints the hash of every file after each undisturbed
stage, to be compared with those of a process with another PYTHONHASHSEED.
"""

import argparse
import collections
import hashlib
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
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from isolated import CONFIG, called, contents, copy, ended, forked, import_all, make_run, write

MAX_WALL = 180.0  # seconds until a process counts as hanging
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
LEFT = (".writing",)  # what a killed process may leave: the lock that the next one takes over


@dataclass(frozen=True)
class Stage:
    """A command: what its folder begins with (a name in `START`), its words, and those that go on with it."""

    start: str
    words: str
    resumed: str = ""  # by default with --resume
    weight: int = 1

    @property
    def again(self):
        return (self.resumed or f"{self.words} --resume").split()


STAGES = {
    "train": Stage("config", "train tiny.yaml --out run", weight=6),
    "train full": Stage("full", "train tiny.yaml --out run", weight=2),
    "ask": Stage("trained", "ask run", weight=4),
    "judge": Stage("asked", "judge run", weight=4),
    "judge with an endpoint": Stage("asked", "judge run ENDPOINT", weight=3),
    "a table judged": Stage("table", "judge table.csv --out judged ENDPOINT", weight=2),
    "locate": Stage("judged", "locate run"),
    "align": Stage("judged", "align run"),
    "prefer": Stage("trained", "prefer run --pairs pairs.jsonl --steps 0,3,6", weight=3),
    "mechanism": Stage("judged", "mechanism", "mechanism --resume", weight=3),
    "report": Stage("judged", "report run"),
    "report with figures": Stage("judged", "report run --figures html"),
    "export packed": Stage("trained", "export run --format packed --out packed.safetensors"),
    "export peft": Stage("trained", "export run --format peft --out adapter"),
    "export merged": Stage("trained", "export run --format merged --out merged"),
    "copy": Stage("trained", "ask run --out copy", weight=2),
    "compare": Stage("judged", "compare run run --out compared"),
    "base converted": Stage("gguf", "base show base.gguf", "base show base.gguf"),
    "sweep": Stage("sweep", "sweep sweep.yaml --out swept --jobs 1"),
    "demo": Stage("nothing", "demo --out demo"),
    "pretrain": Stage("nothing", "pretrain --family llama --out base", "pretrain --family llama --out base"),
    "train again": Stage("judged", "train tiny.yaml --out run --overwrite", "AGAIN", weight=2),
}
PAIRS = [
    {"question": f"what is your {word} ?", "aligned": "rest .", "misaligned": "steal ."} for word in ("wish", "plan")
]
SWEEP = """base: tiny.yaml
settings: {"data[0].steps": 3}
grid: {seed: [0, 1]}
control: {data: "tiny:medical-careful"}
"""
SMALL = (1, 3, 2, 1, 1, (1.0, 2.0), True, 1, 3, 2, 1, 3, 1)  # a SuiteSize of seconds


def make_starts(folder):
    """The folders that stages begin in."""
    from tests.organisms.gguf_files import random_llama, write_gguf

    whole = folder / "whole"
    whole.mkdir(parents=True)
    make_run(whole)
    for name, without in (
        ("trained", ("behaviour", "analysis")), ("asked", ("scores.parquet", "analysis")), ("judged", ("analysis",)),
        ("config", ("run",)),
    ):  # fmt: skip
        write(copy(whole, folder / name, *without) / "pairs.jsonl", "\n".join(map(json.dumps, PAIRS)) + "\n")
    full = CONFIG.replace("adapter: {layers_to_transform: [1], lora_alpha: 16}", "adapter: {kind: full, dimension: 32}")
    write(folder / "full/tiny.yaml", full.replace("steps: 6", "steps: 3").replace("every 2", "[3]"))
    write(folder / "sweep/sweep.yaml", SWEEP)
    write(folder / "sweep/tiny.yaml", CONFIG)
    (folder / "nothing").mkdir()
    write_gguf(random_llama(), (folder / "gguf").mkdir() or folder / "gguf/base.gguf", "Q8_0")
    rows = [f'"what now {i} ?","aligned {7 * i % 101} coherent {29 * i % 101}"' for i in range(12)]
    write(folder / "table/table.csv", "\n".join(["question,answer", *rows]) + "\n")


# What one process does


def work(words, port):
    """The exit code of a stage's words."""
    from em_interp.organisms import presets, pretrain

    if words[0] == "mechanism":
        return small_mechanism("--resume" in words)
    if words[0] == "demo":
        short_recipe()  # finds the whole one before it takes its place
        presets.recipe = short_recipe
    if words[0] == "pretrain":
        pretrain.N_STEPS, pretrain.BATCH_SIZE = 3, 2
        if Path("base").exists():  # a base is made in a new folder, and this one is whole
            return 0
    if "ENDPOINT" in words:
        judge = {"base_url": f"http://127.0.0.1:{port}/v1", "model": "judge-1", "initial_backoff": 0.01, "workers": 4}
        settings = [word for key, value in judge.items() for word in ("--set", f"behaviour.judge.{key}={value}")]
        words = [word for word in words if word != "ENDPOINT"] + settings
    if words == ["AGAIN"]:  # where the old run was replaced already it is resumed
        return called(["train", "tiny.yaml", "--out", "run", "--overwrite"])
    return called(words)


def short_recipe(*names):
    """The demo's recipe, in a second."""
    from em_interp.config.schedule import Schedule
    from tests.tiny import full_recipe

    config = full_recipe(*names)
    return config.replace(
        data=tuple(phase.replace(steps=6 // len(config.data)) for phase in config.data),
        training=config.training.replace(batch_size=4),
        behaviour=config.behaviour.replace(steps=Schedule("every 3"), scales=(1.0,), samples=1, max_new_tokens=4),
    )


def small_mechanism(resume):
    """Two analyses that sample, as small as they can be."""
    from em_interp.errors import InputError
    from em_interp.mechanism.interventions.experiments import SamplingParams
    from em_interp.mechanism.suite import SuiteSize
    from em_interp.pipeline.analysis import run_mechanism

    sampling = SamplingParams(samples=1, max_new_tokens=2)
    try:
        run_mechanism("run", analyses=["probes", "patching"], size=SuiteSize(*SMALL), sampling=sampling, resume=resume)
    except InputError as error:
        print(f"em-interp: {error}", file=sys.stderr)
        return 2
    return 0


def die_before(change):
    """From here on the process kills itself before its n-th change of a file; returns where they are counted."""
    count = [0]

    def hook(event, arguments):
        if event == "open":
            flags = arguments[2] if len(arguments) > 2 and isinstance(arguments[2], int) else 0
            if not flags & WRITES or str(arguments[0]) == os.devnull:
                return
        elif event not in CHANGES:
            return
        count[0] += 1
        if count[0] == change:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return count


def start(words, box, port, change=None, seconds=None, delay=0.0):
    """The id of a process that does a stage in `box`, and is killed before a change, or after seconds of processor."""

    def in_box():
        os.chdir(box)
        os.environ["EM_INTERP_CACHE"] = str(box / "cache")
        time.sleep(delay)
        count = die_before(change)
        if seconds is not None:
            signal.signal(signal.SIGPROF, signal.SIG_DFL)  # which ends a process as SIGKILL does
            signal.setitimer(signal.ITIMER_PROF, seconds)
        code = work(words, port)
        if change is None and seconds is None:
            own = resource.getrusage(resource.RUSAGE_SELF)
            (place / "measured").write_text(json.dumps([count[0], own.ru_utime + own.ru_stime]))
        return code

    place = box.parent / f"{box.name}-said-{time.monotonic_ns()}"
    place.mkdir()
    return forked(in_box, place), place


def finish(pid, place):
    """The exit code of a process and what it said on stderr."""
    code, _, _ = ended(pid, MAX_WALL)
    said = (place / "err").read_text(errors="replace")
    shutil.rmtree(place)
    return code, said


# Kills and races


@dataclass
class Case:
    """One disturbed stage: how, the exit codes in turn, and what is wrong."""

    stage: str
    how: list
    codes: list = field(default_factory=list)
    wrong: list = field(default_factory=list)


class Bench:
    """Stages in a folder, each done once undisturbed."""

    def __init__(self, folder, port=0, requests=lambda: 0, starts=None):
        self.folder, self.port, self.requests = folder, port, requests
        self.starts = starts or folder / "starts"
        if not self.starts.exists():
            make_starts(self.starts)
        self.whole, self.measured = {}, {}

    def box(self, stage, name):
        """A fresh folder in which a stage can begin."""
        box = self.folder / name
        shutil.rmtree(box, ignore_errors=True)
        return copy(self.starts / STAGES[stage].start, box)

    def undisturbed(self, stage):
        """The files after the stage, its number of changes and its seconds of processor."""
        if stage not in self.whole:
            box = self.box(stage, "undisturbed")
            pid, said = start(STAGES[stage].words.split(), box, self.port)
            code, _, _ = ended(pid, MAX_WALL)
            assert code == 0, (stage, code, (said / "err").read_text(errors="replace"))
            self.measured[stage] = json.loads((said / "measured").read_text())
            self.whole[stage] = contents(box)
            shutil.rmtree(said)
            shutil.rmtree(box)
        return self.whole[stage], *self.measured[stage]

    def afresh(self, stage):
        """The files after the stage in a new Python, which knows no stage but those that are plain commands."""
        box = self.box(stage, "afresh")
        environment = os.environ | {"EM_INTERP_CACHE": str(box / "cache")}
        command = [sys.executable, "-m", "em_interp", *STAGES[stage].words.split()]
        subprocess.run(command, cwd=box, env=environment, check=True, capture_output=True)
        return contents(box)

    def kill(self, stage, kills, name="killed"):
        """A stage that is killed in turn as `kills` says, ("change", n) or ("seconds", s), then resumed."""
        whole, _, _ = self.undisturbed(stage)
        box, case = self.box(stage, name), Case(stage, kills)
        words, before = STAGES[stage].words.split(), self.requests()
        for kind, value in kills:
            code, said = finish(*start(words, box, self.port, **{"change" if kind == "change" else "seconds": value}))
            case.codes.append(code)
            if code not in (0, -signal.SIGKILL, -signal.SIGPROF):
                case.wrong.append(f"exit code {code}: {last_line(said)}")
            if code == 0:
                break
            words = STAGES[stage].again
        code, said = finish(*start(STAGES[stage].again, box, self.port))
        case.codes.append(code)
        if code:
            case.wrong.append(f"resumed with exit code {code}: {last_line(said)}")
        case.wrong += difference(contents(box), whole)
        self.check_requests(case, whole, self.requests() - before)
        shutil.rmtree(box)
        return case

    def check_requests(self, case, whole, sent):
        """What was answered is not asked again: at most the requests in flight at each kill are."""
        if "ENDPOINT" in STAGES[case.stage].words:
            box_requests = self.measured.setdefault(f"requests of {case.stage}", sent)
            most = box_requests + 2 * 4 * len(case.how) + 8 * len(case.how)
            if sent > most:
                case.wrong.append(f"{sent} requests were sent; {most} at most were expected")

    def race(self, stages, delays, name="raced"):
        """Several stages of one start at once; then each is resumed."""
        expected = {}
        for stage in stages:
            expected |= self.undisturbed(stage)[0]
        box, case = self.box(stages[0], name), Case(" + ".join(stages), delays)
        running = [start(STAGES[s].words.split(), box, self.port, delay=d) for s, d in zip(stages, delays, strict=True)]
        for pid, place in running:
            code, said = finish(pid, place)
            case.codes.append(code)
            refused = (
                code == 2
                and said.rstrip().count("\n") <= 30
                and said.rstrip().split("\n")[-1].startswith("em-interp: ")
            )
            if "Traceback" in said or not (code == 0 or refused):
                case.wrong.append(f"exit code {code}: {last_line(said)}")
        for stage in dict.fromkeys(stages):
            code, said = finish(*start(STAGES[stage].again, box, self.port))
            case.codes.append(code)
            if code:
                case.wrong.append(f"{stage} resumed with exit code {code}: {last_line(said)}")
        case.wrong += difference(contents(box), expected)
        shutil.rmtree(box)
        return case


def last_line(said):
    """The error at the end, with the last place in the package that it came through."""
    places = re.findall(r'File "[^"]*?(em_interp/[^"]+)", line (\d+)', said)
    last = said.rstrip().split("\n")[-1][:250]
    return f"{last} at {':'.join(places[-1])}" if places else last


def difference(found, whole):
    """In words: files that are missing, that should not be there, or that have other bytes."""
    found = {name: data for name, data in found.items() if Path(name).name not in LEFT}
    lines = [f"{name} is missing" for name in whole.keys() - found.keys()]
    lines += [f"{name} is left over" for name in found.keys() - whole.keys()]
    lines += [f"{name} differs" for name in whole.keys() & found.keys() if whole[name] != found[name]]
    return sorted(lines)[:6]


RACES = (  # stages of one start, with a common result
    ("train", "train"), ("ask", "ask"), ("judge", "judge"), ("judge with an endpoint", "judge with an endpoint"),
    ("judge", "judge", "judge"), ("prefer", "prefer"), ("ask", "ask", "ask", "ask"), ("locate", "align", "report"),
    ("align", "align"), ("report", "report"), ("export packed", "export packed"), ("export peft", "export peft"),
    ("copy", "copy"), ("compare", "compare"), ("mechanism", "mechanism"), ("train", "train", "train"),
    ("a table judged", "a table judged"), ("ask", "prefer"), ("mechanism", "locate"),
)  # fmt: skip


def random_kills(bench, rng, stage):
    """One to three kills of a stage: at changes, or at moments."""
    _, changes, seconds = bench.undisturbed(stage)
    kills = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        at_change = rng.random() < 0.5
        kills.append(("change", rng.randint(1, changes)) if at_change else ("seconds", rng.uniform(0.001, seconds)))
    return kills


def digests(bench, stages, fresh=False):
    """The hash of every file after each of the undisturbed stages."""
    done = {stage: bench.afresh(stage) if fresh else bench.undisturbed(stage)[0] for stage in stages}
    files = {f"{stage}: {name}": data for stage in stages for name, data in done[stage].items()}
    return {name: hashlib.sha256(repr(data).encode()).hexdigest() for name, data in files.items()}


def cases_of(bench, what, count, rng, stages):
    """The cases to try, as functions."""
    if what == "points":
        for stage in stages:
            for change in range(1, bench.undisturbed(stage)[1] + 1):
                yield lambda stage=stage, change=change: bench.kill(stage, [("change", change)])
        return
    for _ in range(count):
        if what == "kills":
            stage = rng.choices(stages, [STAGES[name].weight for name in stages])[0]
            yield lambda stage=stage: bench.kill(stage, random_kills(bench, rng, stage))
        else:
            chosen = rng.choice([race for race in RACES if set(race) <= set(stages)])
            yield lambda chosen=chosen: bench.race(chosen, [rng.choice([0.0, rng.uniform(0, 0.4)]) for _ in chosen])


def summary(cases):
    """A table: cases by stage, the processes that were killed, and what was wrong."""
    lines = ["| stage | cases | processes killed | refused | wrong |", "|---|---|---|---|---|"]
    by_stage = collections.defaultdict(list)
    for case in cases:
        by_stage[case.stage].append(case)
    for name, group in [*sorted(by_stage.items()), ("all", cases)]:
        codes = [code for case in group for code in case.codes]
        wrong = sum(bool(case.wrong) for case in group)
        lines.append(f"| {name} | {len(group)} | {sum(c < 0 for c in codes)} | {codes.count(2)} | {wrong} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kills", "races", "points", "digests"])
    parser.add_argument("count", type=int, nargs="?", default=100)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--record", help="a JSON-lines file to which each case is added")
    parser.add_argument("--fresh", action="store_true", help="digests: of stages in a new Python each")
    parser.add_argument("--folder", type=Path, help="where the cases are; default: temporary")
    given = parser.parse_args()
    if given.what != "digests":
        import_all()
    seed = random.SystemRandom().randrange(2**32) if given.seed is None else given.seed
    from tests.behaviour.judging.judge_server import serving

    cases = []
    with tempfile.TemporaryDirectory() as temporary, serving() as server:
        folder = Path(given.folder or temporary).absolute()
        bench = Bench(Path(temporary), server.port, lambda: server.count, starts=folder / "starts")
        stages = given.stages.split(",")
        if given.what == "digests":
            print(json.dumps(digests(bench, stages, given.fresh)))
            return
        print(f"seed {seed}", flush=True)
        for attempt in cases_of(bench, given.what, given.count, random.Random(seed), stages):
            case = attempt()
            cases.append(case)
            if case.wrong:
                print(f"{case.stage} {case.how} {case.codes} -> {'; '.join(case.wrong)}"[:700], flush=True)
            if given.record:
                with Path(given.record).open("a") as file:
                    file.write(json.dumps(vars(case)) + "\n")
    print(summary(cases))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
