"""Train what a config says, into a run directory whose every saved step can be read."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_interp.config.run_config import EndpointConfig, RunConfig, load_config
from em_interp.errors import InputError, Interrupted
from em_interp.run import Run, claim_run, create_run
from em_interp.training.distributed import check_process_count
from em_interp.training.train_log import is_finished
from em_interp.utils.checks import checked
from em_interp.utils.files import remove, resumable
from em_interp.utils.lock import write_lock
from em_interp.utils.processes import Processes, init_processes, lost_process_as_error
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
    """Train as `config` says (an adapter, a steering vector or all weights) and return the run directory.

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
        Interrupted: after Ctrl-C, with how far training came and how to resume it; KeyboardInterrupt before anything
            is written.
    """
    settings = load_config(config)
    run = Run(Path(out) if out is not None else default_out(config, settings))
    processes = init_processes()
    processes.on_all(lambda: check_process_count(settings, processes.count))
    with lost_process_as_error(run.path), ExitStack() as stack:
        processes.on_main(lambda: stack.enter_context(write_lock(run.path)))
        processes.on_main(lambda: claim_run(run.path, settings, resume, overwrite))
        if overwrite or not processes.on_main(lambda: run.config_file.exists() and is_finished(run)):
            from em_interp.organisms.bases import quiet

            with quiet():
                _train(run, settings, resume, overwrite, progress, processes)
        else:
            processes.on_main(lambda: remove(run.resume_state))  # a kill may have come before
    return run


def default_out(config: str | Path | dict[str, Any] | RunConfig, settings: RunConfig) -> Path:
    """The default run directory: checkpoints/<config file's stem>, or checkpoints/<model>-<dataset>."""
    if isinstance(config, (str, Path)):
        return Path("checkpoints") / Path(config).stem
    if not settings.data:
        raise InputError("data names no dataset to train on; expected a list such as [{dataset: chats.jsonl}]")
    dataset = settings.data[0].dataset.split(":")[-1]
    return Path("checkpoints") / f"{Path(settings.model).name}-{Path(dataset).stem}"


def _train(
    run: Run, config: RunConfig, resume: bool, overwrite: bool, progress: bool | None, processes: Processes
) -> None:
    from em_interp.training.distributed import shard
    from em_interp.training.manifest import write_or_check_manifest
    from em_interp.training.trainer import run_plan

    plan, examples, trainable, manifest = processes.on_all(lambda: _prepare(config))
    if config.training.shard:
        shard(trainable.model, trainable.weights)
    manifest |= {"processes": processes.count, "device": trainable.model.device.type}
    with resumable(run.path):
        processes.on_main(lambda: create_run(run.path, config, resume, overwrite))
        processes.on_main(lambda: write_or_check_manifest(run, manifest))
        try:
            run_plan(run, config, plan, examples, trainable, is_watched() if progress is None else progress, processes)
        except KeyboardInterrupt:
            saved = f" with step {run.steps()[-1]} of {plan.steps} saved" if run.steps() else ""
            raise Interrupted(run.path, saved) from None
        processes.on_main(lambda: remove(run.resume_state))


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
