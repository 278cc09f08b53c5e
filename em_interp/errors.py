"""The one kind of error a user can mend."""


class InputError(ValueError):
    """Something given to em_interp cannot be used.

    The message is one line that says what is wrong, what was expected and what is there. The command line prints
    it without a traceback and exits with code 2.
    """


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """'; did you mean X?' for the closest known word, else one that contains it, or '' where there is neither."""
    from difflib import get_close_matches

    close = get_close_matches(word, known, n=1) or [name for name in known if word in name.split("_")]
    return f"; did you mean {close[0]!r}?" if close else ""
