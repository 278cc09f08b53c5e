"""The command line: `app` parses it; here the command is run, and its result or a one-line error printed.

Nothing is imported before Ctrl-C and SIGTERM are caught, so that from here to the end each ends with one line that
says how to go on.
"""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from em_interp.cli.app import Call

OK, FAILED, BAD_INPUT = 0, 1, 2  # exit codes; 128 + its number after a signal
SIGNALS = (signal.SIGINT, signal.SIGTERM)
GC_THRESHOLD = 10_000  # Python's own 700 adds a tenth to the import of torch and transformers, whose objects stay


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one command of `argv`, by default of the process, and return its exit code.

    0; 1 where runs of a sweep failed; 2 for what the user can mend; 130 after Ctrl-C and 143 after SIGTERM.
    """
    _replace_what_cannot_be_shown()
    gc.set_threshold(GC_THRESHOLD)
    with _Interruptible(sys.argv[1:] if argv is None else argv, leaving=argv is None) as command:
        command.code = _carry_out(command)
    if argv is None and (command.code > 128 or int(os.environ.get("WORLD_SIZE", 1)) > 1):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(command.code)  # where the interpreter would wait for threads of a download; and gloo aborts in it
    return command.code


def _replace_what_cannot_be_shown() -> None:
    """A '?' on stdout for what the console's code page lacks (a ‖ in cp1252), instead of an error once all is done."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


class _Interruptible:
    """One command, during which Ctrl-C and SIGTERM raise KeyboardInterrupt and are explained when it has ended.

    A signal that is ignored from the start, as Ctrl-C is in the background of a shell, stays ignored. When the process
    is `leaving`, a late Ctrl-C no longer matters: everything has been written and printed.
    """

    def __init__(self, words: Sequence[str], leaving: bool) -> None:
        self.words, self.leaving = list(words), leaving
        self.code, self.signal = OK, signal.SIGINT
        self.call: Call | None = None  # once it has been parsed
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Interruptible:
        if threading.current_thread() is threading.main_thread():
            caught = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self.before = {number: signal.signal(number, self._stop) for number in caught}
        return self

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        raise KeyboardInterrupt

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        for number, handler in self.before.items():
            signal.signal(number, signal.SIG_IGN if self.leaving and number == signal.SIGINT else handler)
        if not isinstance(error, KeyboardInterrupt):
            return False
        if os.environ.get("RANK", "0") == "0":  # of several processes the first one speaks
            log(f"em-interp: {self._explanation(error)}")
        self.code = 128 + self.signal
        return True

    def _explanation(self, error: KeyboardInterrupt) -> str:
        """What was interrupted, and the command that continues it."""
        import shlex

        words, purpose = self.words, "begin again"
        if self.call is not None and self.call.resumes:
            purpose = "continue"
            if "--overwrite" not in words:
                words = [*words, *(["--resume"] if "--resume" not in words else [])]
            elif hasattr(error, "progress"):  # what was there has been removed already
                words = ["--resume" if word == "--overwrite" else word for word in words]
        progress = getattr(error, "progress", "")
        return f"interrupted{progress}; nothing is lost, to {purpose}: {_program()} {shlex.join(words)}"


def _program() -> str:
    """How this program was started, for a command that starts it again."""
    count, here = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if count > 1:
        return f"torchrun {'…' if count > here else f'--nproc-per-node {count}'} -m em_interp"
    from pathlib import Path

    return "python -m em_interp" if Path(sys.argv[0]) == Path(__file__).parents[1] / "__main__.py" else "em-interp"


def _carry_out(command: _Interruptible) -> int:
    from em_interp.errors import InputError, missing_extra

    try:
        from em_interp.cli.app import parse

        call = parse(command.words)
        if isinstance(call, int):  # --help and the like have printed what was asked for
            return call
        command.call = call
        answer = call.function(**call.arguments)
        return _print(answer.values if call.as_json else answer.text) or answer.code
    except InputError as error:
        log(f"em-interp: {_in_shell(str(error))}")
    except OSError as error:  # one that no stage has put in its own words
        where = "" if error.filename is None else f"{error.filename}: "
        log(f"em-interp: {where}{error.strerror or error}")
    except MemoryError as error:
        log(f"em-interp: this takes more memory than there is: {error}".rstrip(": "))
    except ModuleNotFoundError as error:
        missing = missing_extra(error)
        if missing is None:
            raise
        log(f"em-interp: {missing}")
    return BAD_INPUT


def _in_shell(message: str) -> str:
    """The message with the shell's options in place of Python's arguments: `resume=True` is --resume, `out=…` --out."""
    import re

    return re.sub(r"(?<![\w./-])([a-z_]+)=(?:True|…)", lambda found: f"--{found[1].replace('_', '-')}", message)


def _print(result: dict[str, Any] | str) -> int:
    """Print to stdout; returns the exit code, which is 2 where its disk is full."""
    from em_interp.errors import printable
    from em_interp.utils.files import to_json

    # a name in a run may hold what steers a terminal; JSON leaves of this only the delete character as it is
    text = (
        "\n".join(map(printable, result.split("\n")))
        if isinstance(result, str)
        else to_json(result).replace("\x7f", "\\u007f")
    )
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        if not isinstance(error, BrokenPipeError):  # a reader such as `head` that has seen enough
            log(f"em-interp: stdout cannot be written: {error.strerror or error}")
            return BAD_INPUT
    return OK


def log(line: str) -> None:
    """A line to the person at the terminal; stdout is for results."""
    from em_interp.errors import printable, shortened

    print(shortened(printable(line)), file=sys.stderr)
