"""Errors for the user, and text from elsewhere made safe for their messages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from urllib.parse import quote


class InputError(ValueError):
    """Something given to em_interp cannot be used.

    The message is one line that says what is wrong, what was expected and what is there. The command line prints
    it without a traceback and exits with code 2. It may quote a file or a server:
    the middle of a long message is therefore left out, and control characters are replaced by spaces.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(shortened(printable(str(message))))


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM in work that can go on from what it has written.

    Attributes:
        folder: the folder that the work writes to.
        progress: how far the work came, such as " with step 7 of 80 saved".
    """

    def __init__(self, folder: Path, progress: str = "") -> None:
        super().__init__(f"interrupted{progress}; nothing is lost, resume=True continues in {folder}")
        self.folder, self.progress = folder, progress


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """'; did you mean X?' for the closest known word, else one that contains it, or '' where there is neither."""
    from difflib import get_close_matches

    close = get_close_matches(word, known, n=1) or [name for name in known if word in name.split("_")]
    return f"; did you mean {close[0]!r}?" if close else ""


EXTRAS = {  # what an install without extras lacks, and the extra that brings it
    **dict.fromkeys(("torch", "transformers", "peft", "accelerate"), "train"),
    **dict.fromkeys(("transformer_lens", "nnsight", "sklearn", "einops"), "mechanism"),
    "openai": "judge",
    "huggingface_hub": "hub",
    "kaleido": "export",
    "gguf": "gguf",
    "joblib": "sweep",
    "ray": "ray",
}


def missing_extra(error: ModuleNotFoundError, needed_by: str = "this") -> str | None:
    """What to install where a package of an extra was not found; None for any other module, such as a part of one."""
    extra = EXTRAS.get(error.name or "")
    return extra and f"{needed_by} needs {error.name}, which is not installed: pip install 'em-interp[{extra}]'"


@contextmanager
def extra_for(needed_by: str, otherwise: str = "") -> Iterator[None]:
    """A package of an extra that is not installed is an InputError; one that is there and broken fails as it does.

    The message ends with `otherwise`: what can be done without the package.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = missing_extra(error, needed_by)
        if missing is None:
            raise
        raise InputError(missing + otherwise) from None


REDACTED = "[key]"
MIN_SECRET = 4  # characters; a shorter key is no secret, and its letters are in every text
MIN_PREFIX = 8  # characters of a secret that was cut off which still count as it
MAX_MESSAGE = 300  # characters of a text from elsewhere that a message repeats
MAX_LINE = 900  # characters of a message


def redact(text: str, secret: str | None) -> str:
    """`text` with the secret replaced: as it is, quoted for an address, JSON or HTML, and where its end was cut off.

    To be called before a text is cut to a length, on everything that came from a server to which the secret was sent.
    """
    if not secret or len(secret) < MIN_SECRET:
        return text
    for form in {secret, quote(secret, safe=""), json.dumps(secret)[1:-1], escape(secret)}:
        least = min(MIN_PREFIX, len(form))
        if form[:least] in text:
            for length in range(len(form), least - 1, -1):
                text = text.replace(form[:length], REDACTED)
    return text


def one_line(text: str, limit: int = MAX_MESSAGE) -> str:
    """A text from elsewhere as part of a message: one line without control characters, cut to `limit` characters."""
    return " ".join(printable(text[: 100 * limit]).split())[:limit]


def printable(text: str) -> str:
    """The text with a space for each line end, control character, bidirectional control and lone surrogate."""
    return text if text.isprintable() else "".join(letter if letter.isprintable() else " " for letter in text)


def shortened(text: str) -> str:
    """The text; of one longer than MAX_LINE the beginning and the end, where messages say what to do."""
    part = (MAX_LINE - 3) // 2
    return text if len(text) <= MAX_LINE else f"{text[:part]} … {text[-part:]}"


def listed(names: Iterable[object], limit: int = 4) -> str:
    """The first `limit` names joined by commas, and how many more there are."""
    words = [str(name) for name in names]
    rest = len(words) - limit
    return ", ".join(words[:limit]) + (f" and {rest} more" if rest > 0 else "")
