"""What a run was made of: enough to repeat it, and to refuse what does not belong to it."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import em_interp
from em_interp.config import RunConfig, load_config
from em_interp.errors import InputError
from em_interp.files import read_json, write_json
from em_interp.organisms.bases import Base, revision_of
from em_interp.organisms.datasets import Chats
from em_interp.run import Run, claim_run, create_run
from em_interp.training.checkpoints import finished
from em_interp.training.distributed import Processes, check_shares, is_lost, join
from em_interp.training.plan import Plan

if TYPE_CHECKING:
    from em_interp.organisms.bases import Base
    from em_interp.training.plan import Plan
    from em_interp.training.trainables import Trainable
    from em_interp.training.trainer import Examples

PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors", "numpy")


def make_manifest(config: RunConfig, plan: Plan, chats: Mapping[str, Chats], base: Base, model: Any) -> dict[str, Any]:
    """The manifest of a run of `config` through `plan`, with `model` the one that is to be trained."""
    import torch

    return {
        "versions": {"em_interp": em_interp.__version__, "python": platform.python_version()}
        | {package: version(package) for package in PACKAGES},
        "base": {"name": base.name, "identity": base.identity, "revision": revision_of(config.model)},
        "phases": [
            {
                "dataset": phase.dataset,
                "domain": chats[phase.dataset].domain,
                "sha256": chats[phase.dataset].sha256,
                "rows": len(chats[phase.dataset].rows),
                "held_out": len(plan.held_out[phase.dataset]),
                "first_step": phase.first,
                "last_step": phase.last,
                "restart": phase.restart,
            }
            for phase in plan.phases
        ],
        **({"kl": {"dataset": config.kl.dataset, "sha256": chats[config.kl.dataset].sha256}} if config.kl else {}),
        "seed": config.seed,
        "device": base.model.device.type,
        "dtype": str(base.model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "git_commit": git_commit(),
        "counts": {
            "steps": plan.steps,
            "rows_per_step": plan.rows.shape[1],
            "snapshots": len(config.checkpoints.steps(plan.steps)),
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        },
    }


def git_commit() -> str | None:
    """The commit of em_interp's own source tree; None where it is installed without one."""
    source = Path(em_interp.__file__).resolve().parents[1]
    if not (source / ".git").exists():
        return None
    try:
        said = subprocess.run(["git", "-C", source, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return said.stdout.strip()


# --------
# Train an adapter as a config asks, and leave a run directory that can be read at every step.


def train(
    config: str | Path | dict[str, Any] | RunConfig,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
    processes: int | None = None,
) -> Run:
    """Train a LoRA adapter as `config` asks and return its run directory.

    Args:
        config: a YAML file, a mapping or a RunConfig.
        out: the run directory; by default checkpoints/<name of the config file>, or checkpoints/<model>-<dataset>.
        resume: go on with the run that is in `out`. After a kill at any moment the adapters and the log end the same
            as those of a run that was not stopped, bit for bit on a CPU with the same number of threads. A finished
            run is left as it is.
        progress: a bar on stderr.
        processes: how many processes are to run this together; by default as many as a launcher has started. They
            share every step's micro-batches, so that any number that divides training.gradient_accumulation_steps
            trains the same adapter, up to rounding. The first process writes; all return when it is done.

    Loss is on the assistant's tokens only, averaged over all of a step's tokens. Each row of the log has the loss
    before the step, the gradient norms (of all, of A, of B) before clipping, the learning rate of the step and the
    sum of learning rates up to and with it.

    Raises InputError, before anything is written, for a config, dataset or site that cannot be used; and for a
    folder that holds another run or cannot be written. KeyboardInterrupt carries a message that says how to go on.
    """
    settings = load_config(config)
    path = Path(out) if out is not None else default_out(config, settings)
    with _one_for_all(Run(path)):
        together = join(processes)
        together.agree(lambda: check_shares(settings, together.count))
        with _writing_to(path):
            run = together.lead(lambda: claim_run(path, settings, resume))
        if not together.lead(lambda: run.config_file.exists() and finished(run)):
            from em_interp.organisms.bases import quiet

            with quiet():
                _train(run, settings, resume, progress, together)
        together.lead(lambda: shutil.rmtree(run.resume_state, ignore_errors=True))
    return run


def _train(run: Run, config: RunConfig, resume: bool, progress: bool, together: Processes) -> None:
    from em_interp.organisms.bases import BUILT_IN, load_base
    from em_interp.training.trainer import run_plan

    if together.count > 1 and config.model in BUILT_IN:
        together.lead(lambda: bool(load_base(config.model)))  # where it is missing it is made, by one
    plan, examples, learner, manifest = together.agree(lambda: _prepare(config))
    if config.training.shard:
        from em_interp.training.distributed import shard

        shard(learner.model, learner.weights)
    manifest |= {"processes": together.count, "device": learner.model.device.type}
    with _writing_to(run.path), _interruptible(run, plan.steps):
        together.lead(lambda: bool(create_run(run.path, config, resume)))
        together.lead(lambda: _keep_manifest(run, manifest))
        run_plan(run, config, plan, examples, learner, progress, together)


def _prepare(config: RunConfig) -> tuple[Plan, Examples, Trainable, dict[str, Any]]:
    """The plan, the tokenised rows, the model with what is trained in it, and the manifest."""
    from em_interp.organisms.datasets import load_chats
    from em_interp.training.plan import make_plan
    from em_interp.training.tokenize import encode
    from em_interp.training.trainables import check_place, make_trainable

    named = [phase.dataset for phase in config.data] + ([config.kl.dataset] if config.kl else [])
    chats = {name: load_chats(name, config.seed) for name in dict.fromkeys(named)}
    plan = make_plan(config, {name: len(data.rows) for name, data in chats.items()})
    _check_questions(config)
    check_place(config)
    base = _load(config)
    examples = {
        name: encode(data, plan.rows_of(name), base.tokenizer, config.training.max_length)
        for name, data in chats.items()
    }
    learner = make_trainable(base, config, plan.steps)
    return plan, examples, learner, make_manifest(config, plan, chats, base, learner.model)


def _check_questions(config: RunConfig) -> None:
    """Raise InputError where the run could not be asked later: no such file of questions, or no such set in it."""
    from em_interp.behaviour.questions import of_sets, read_questions

    if config.behaviour.questions != "tiny":  # those of the built-in language are there
        of_sets(read_questions(config.behaviour.questions).rows, config.behaviour.sets)


def _load(config: RunConfig) -> Base:
    """The base where it will be trained; one that is to be spread waits in main memory."""
    import torch

    from em_interp.organisms.bases import load_base

    if not config.training.shard:
        return load_base(config.model, config.base_dtype)
    gpu = torch.cuda.is_available() and config.base_dtype == "auto"
    return load_base(config.model, "bfloat16" if gpu else config.base_dtype, "cpu")


def default_out(config: str | Path | dict[str, Any] | RunConfig, settings: RunConfig) -> Path:
    """Where a run goes that was not told: checkpoints/<config file's stem>, or checkpoints/<model>-<dataset>."""
    if isinstance(config, (str, Path)):
        return Path("checkpoints") / Path(config).stem
    if not settings.data:
        raise InputError("data names no dataset to train on; expected a list such as [{dataset: chats.jsonl}]")
    dataset = settings.data[0].dataset.split(":")[-1]
    return Path("checkpoints") / f"{Path(settings.model).name}-{Path(dataset).stem}"


def _keep_manifest(run: Run, manifest: dict[str, Any]) -> None:
    """Write the manifest, or check that a run begun earlier has the same base and data."""
    if not run.manifest_file.is_file():
        write_json(run.manifest_file, manifest)
        return
    before = read_json(run.manifest_file)
    for what in ("base", "phases", "kl"):
        if _told(before, what) != _told(manifest, what):
            raise InputError(f"{run.manifest_file}: {what} changed since the run began, so it cannot be resumed")


def _told(manifest: dict[str, Any], what: str) -> Any:
    """What must be the same; of a base its name and weights: these may be those of another revision."""
    value = manifest.get(what)
    return {**value, "revision": None} if what == "base" and value else value


@contextmanager
def _writing_to(path: Path) -> Iterator[None]:
    """A full or read-only folder as an InputError."""
    try:
        yield
    except OSError as error:
        kept = "; what is there is kept, --resume goes on" if Run(path).config_file.exists() else ""
        raise InputError(f"{path} cannot be written: {error.strerror or error}{kept}") from error


@contextmanager
def _one_for_all(run: Run) -> Iterator[None]:
    """The end of another process as an InputError; its own words, if it had any, are on stderr."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost(error):
            raise
        saved = run.steps()
        kept = f"step {saved[-1]} is saved, --resume goes on in {run.path}" if saved else "nothing was written"
        raise InputError(f"another process of this training has ended, so all do; {kept}") from error


@contextmanager
def _interruptible(run: Run, last: int) -> Iterator[None]:
    """Ctrl-C with a message that says where training stopped and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        saved = run.steps()
        where = f"interrupted with step {saved[-1]} of {last} saved" if saved else "interrupted before the first step"
        raise KeyboardInterrupt(f"{where}; nothing is lost, --resume goes on in {run.path}") from None
