"""The commands as typer knows them: their groups in --help, the options they share, and how a line is parsed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from importlib import import_module
from typing import Annotated, Any

import typer

from em_interp.errors import InputError

GROUPS = ("training", "behaviour", "analysis", "comparison", "sharing")  # modules here with commands, in this order
START, TRAIN, ASK, ANALYSE, COMPARE, SHARE = (
    "Start",
    "Train",
    "Ask and judge",
    "Find transitions",
    "Compare runs",
    "Report and share",
)  # panels of --help

Out = Annotated[str | None, typer.Option("--out", metavar="DIR", help="Where to write.")]
Resume = Annotated[bool, typer.Option("--resume", metavar="", help="Continue with what exists.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", metavar="", help="Replace what exists.")]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a setting of the config (repeat).")
]
Columns = Annotated[
    list[str], typer.Option("--columns", metavar="COLUMN=NAME", help="The table's name for a column (repeat).")
]
AsJson = Annotated[bool, typer.Option("--json", metavar="", help="Print one JSON object and nothing else on stdout.")]


@dataclass(frozen=True)
class CommandResult:
    """The result of a command: what --json prints, what a person reads, and the exit code."""

    values: dict[str, Any]
    text: str
    code: int = 0


@dataclass(frozen=True)
class Call:
    """A command line that has been parsed: a command and its arguments."""

    function: Callable[..., CommandResult]
    arguments: dict[str, Any]
    as_json: bool

    @property
    def resumes(self) -> bool:
        """Whether the command can continue from what it has written."""
        return "resume" in self.arguments


app = typer.Typer(
    name="em-interp",
    help="When, inside a fine-tune, did the model change? Train, ask, judge, locate, align, report.",
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from em_interp import __version__

        typer.echo(f"em-interp {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", metavar="", callback=_version, is_eager=True, help="The version.")
    ] = False,
) -> None:
    """The options of the program itself."""


def command(
    panel: str, example: str, name: str | None = None, parent: typer.Typer = app
) -> Callable[[Callable[..., CommandResult]], Callable[..., CommandResult]]:
    """Make a function a command of `panel`: its docstring is the help, `example` what a person might type.

    The command gets --json besides the function's own parameters. Typer calls it to get a `Call`; `main` carries
    that out, so that nothing happens inside typer but parsing.
    """

    def register(function: Callable[..., CommandResult]) -> Callable[..., CommandResult]:
        @wraps(function)
        def call(as_json: bool, **arguments: Any) -> Call:
            return Call(function, arguments, as_json)

        own = inspect.signature(function, eval_str=True)
        flag = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=AsJson)
        call.__signature__ = own.replace(parameters=[*own.parameters.values(), flag])  # type: ignore[attr-defined]
        called = name or function.__name__.replace("_", "-")
        parent.command(
            called, rich_help_panel=panel if parent is app else None, epilog=f"Example: [bold]{example}[/bold]"
        )(call)
        return function

    return register


def parse(words: Sequence[str]) -> Call | int:
    """The command in a command line; an exit code where typer has done what was asked for, such as --help.

    Raises InputError, in one line, for what is no command or option.
    """
    commands = _commands()
    if list(words) in [[], *([group.name] for group in app.registered_groups)]:
        words = [*words, "--help"]
    try:
        called = commands.main(list(words), "em-interp", standalone_mode=False)
    except typer.TyperException as error:
        raise InputError(f"{_one_line(error)} (see {_help_of(error)} --help)") from None
    if isinstance(called, Call):
        _refuse_empty(called.arguments)
        return called
    return called if isinstance(called, int) else 0


@cache
def _commands() -> Any:
    """All commands as typer parses them."""
    for group in GROUPS:
        import_module(f"em_interp.cli.{group}")
    return typer.main.get_command(app)


def _refuse_empty(arguments: dict[str, Any]) -> None:
    """Raise InputError for an argument without a character, which as a path would mean the folder one is in."""
    for name, value in arguments.items():
        if "" in (value if isinstance(value, list) else [value]):
            raise InputError(f"{name} is empty; the usual cause is a variable of the shell that is not set")


def _one_line(error: typer.TyperException) -> str:
    close = getattr(error, "possibilities", None)
    hint = f"; did you mean {' or '.join(sorted(close))}?" if close else ""
    message = error.message if close is not None else error.format_message()
    text = " ".join(message.replace("Value error, ", "").split()).rstrip(".")
    return f"{text[:1].lower()}{text[1:]}{hint}"


def _help_of(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if context is not None else "em-interp"
