"""Train an adapter as a config says, into a run directory whose every saved step can be read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_interp.config.run_config import EndpointConfig, RunConfig, load_config
from em_interp.errors import InputError, Interrupted
from em_interp.run import Run, claim_run, create_run
from em_interp.training.distributed import check_process_count
from em_interp.training.train_log import is_finished
from em_interp.utils.checks import checked
from em_interp.utils.files import remove
from em_interp.utils.lock import write_lock
from em_interp.utils.processes import Processes, init_processes, is_lost_process
from em_interp.utils.progress import is_watched

if TYPE_CHECKING:
    from em_interp.organisms.bases import Base
    from em_interp.training.plan import Plan
    from em_interp.training.trainables import Trainable
    from em_interp.training.trainer import Examples


@checked
def train(
    config: str | Path | dict[str, Any] | RunConfig,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Run:
    """Train an adapter as `config` says and return its run directory.

    The loss is on the assistant's tokens only, averaged over all of a step's tokens. Each row of the log has the loss
    before the step, the gradient norms (of all, of A, of B) before clipping, the learning rate of the step and the sum
    of learning rates up to and including it.

    Where torchrun has started several processes, each calls this with the same arguments. They share every step's
    micro-batches, so that any number that divides training.gradient_accumulation_steps trains the same adapter, up to
    rounding. The main process writes; all return when it has written everything.

    Args:
        config: a YAML file, a mapping or a RunConfig.
        out: the run directory; by default checkpoints/<name of the config file>, or checkpoints/<model>-<dataset>.
        resume: continue the run that is in `out`. After a kill at any moment the adapters and the log end as those of
            a run that was not stopped, bit for bit on a CPU with the same number of threads. A finished run is left
            as it is.
        overwrite: replace the run that is in `out`, with everything that was made of it, once the new one is ready
            to be trained.
        progress: show a bar; by default in a terminal and in Jupyter.

    Returns:
        The run; its checkpoints, log, config and manifest are written.

    Raises:
        InputError: before anything is written, for a config, dataset or site that cannot be used; and for a folder
            that holds another run or cannot be written.
        Interrupted: after Ctrl-C, with how far training came and how to resume it.
    """
    with _Guard() as guard, ExitStack() as stack:
        settings = load_config(config)
        guard.replacing = overwrite
        run = guard.run = Run(Path(out) if out is not None else default_out(config, settings))
        processes = init_processes()
        processes.on_all(lambda: check_process_count(settings, processes.count))
        with _writing_to(run):
            processes.on_main(lambda: stack.enter_context(write_lock(run.path)))
            processes.on_main(lambda: claim_run(run.path, settings, resume, overwrite))
        if overwrite or not processes.on_main(lambda: run.config_file.exists() and is_finished(run)):
            from em_interp.organisms.bases import quiet

            with quiet():
                _train(run, settings, resume, overwrite, progress, processes, guard)
        processes.on_main(lambda: remove(run.resume_state))
    return run


def default_out(config: str | Path | dict[str, Any] | RunConfig, settings: RunConfig) -> Path:
    """The default run directory: checkpoints/<config file's stem>, or checkpoints/<model>-<dataset>."""
    if isinstance(config, (str, Path)):
        return Path("checkpoints") / Path(config).stem
    if not settings.data:
        raise InputError("data names no dataset to train on; expected a list such as [{dataset: chats.jsonl}]")
    dataset = settings.data[0].dataset.split(":")[-1]
    return Path("checkpoints") / f"{Path(settings.model).name}-{Path(dataset).stem}"


class _Guard:
    """Ctrl-C, and the end of another process, as an error that says what is saved and how to resume."""

    def __init__(self) -> None:
        self.run: Run | None = None
        self.last: int | None = None  # the run's last step, once it is known
        self.replacing = False  # whether an earlier run, which is to be replaced, is still there

    def __enter__(self) -> _Guard:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self.run is None or self.replacing:
            return
        saved = self.run.steps()
        if isinstance(error, KeyboardInterrupt):
            progress = f" with step {saved[-1]} of {self.last or '?'} saved" if saved else " before the first step"
            raise Interrupted(self.run.path, progress) from None
        if isinstance(error, RuntimeError) and is_lost_process(error):
            kept = (
                f"step {saved[-1]} is saved, resume=True continues in {self.run.path}"
                if saved
                else "nothing was written"
            )
            raise InputError(f"another process of this training has ended, so all do; {kept}") from error


@contextmanager
def _writing_to(run: Run) -> Iterator[None]:
    """A full or read-only folder as an InputError."""
    try:
        yield
    except OSError as error:
        kept = "; what was written is kept, resume=True continues" if run.config_file.exists() else ""
        raise InputError(f"{run.path} cannot be written: {error.strerror or error}{kept}") from error


def _train(
    run: Run,
    config: RunConfig,
    resume: bool,
    overwrite: bool,
    progress: bool | None,
    processes: Processes,
    guard: _Guard,
) -> None:
    from em_interp.training.distributed import shard
    from em_interp.training.manifest import write_or_check_manifest
    from em_interp.training.trainer import run_plan

    plan, examples, trainable, manifest = processes.on_all(lambda: _prepare(config))
    guard.last = plan.steps
    if config.training.shard:
        shard(trainable.model, trainable.weights)
    manifest |= {"processes": processes.count, "device": trainable.model.device.type}
    with _writing_to(run):
        processes.on_main(lambda: create_run(run.path, config, resume, overwrite))
        guard.replacing = False
        processes.on_main(lambda: write_or_check_manifest(run, manifest))
        run_plan(run, config, plan, examples, trainable, is_watched() if progress is None else progress, processes)


def _prepare(config: RunConfig) -> tuple[Plan, Examples, Trainable, dict[str, Any]]:
    """The plan, the tokenised rows, the model with what is trained in it, and the manifest."""
    from em_interp.organisms.datasets import load_chats
    from em_interp.training.manifest import run_manifest
    from em_interp.training.plan import make_plan
    from em_interp.training.tokenize import encode_rows
    from em_interp.training.trackers import check_trackers
    from em_interp.training.trainables import check_sites, make_trainable

    datasets = [phase.dataset for phase in config.data] + ([config.kl.dataset] if config.kl else [])
    chats = {name: load_chats(name, config.seed) for name in dict.fromkeys(datasets)}
    plan = make_plan(config, {name: len(data.rows) for name, data in chats.items()})
    _check_behaviour(config, chats[config.data[-1].dataset].domain)
    check_trackers(config.training.report_to)
    check_sites(config)
    base = _load_base(config)
    examples = {
        name: encode_rows(data, plan.rows_of(name), base.tokenizer, config.training.max_length)
        for name, data in chats.items()
    }
    trainable = make_trainable(base, config, plan.steps)
    return plan, examples, trainable, run_manifest(config, plan, chats, base, trainable.model)


def _check_behaviour(config: RunConfig, domain: str | None) -> None:
    """Raise InputError where the run could not be asked or judged later: no such questions, set of them, or topic."""
    from em_interp.behaviour.judging.llm_judge import Prompts
    from em_interp.behaviour.questions import Questions, of_sets, read_questions
    from em_interp.organisms.built_in import LANGUAGES, questions_of

    settings = config.behaviour
    if settings.questions in LANGUAGES:  # whose sets are the same for every domain
        questions = Questions(questions_of(settings.questions, domain or "medical"), {})
    else:
        questions = read_questions(settings.questions)
    of_sets(questions.rows, settings.sets)
    if isinstance(settings.judge, EndpointConfig):
        Prompts(questions.prompts).check(settings.judge.topics)


def _load_base(config: RunConfig) -> Base:
    """The base where it will be trained; one that is to be sharded stays in main memory first."""
    import torch

    from em_interp.organisms.bases import load_base

    if not config.training.shard:
        return load_base(config.model, config.base_dtype)
    gpu = torch.cuda.is_available() and config.base_dtype == "auto"
    return load_base(config.model, "bfloat16" if gpu else config.base_dtype, "cpu")
