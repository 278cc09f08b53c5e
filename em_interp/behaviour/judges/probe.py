"""How a server's replies can be scored, found out by asking once before anything is spent.

The expected value needs log-probabilities, which some servers refuse and others leave out without a word. It also
needs a model to whom a number up to 100 is one token: where digits are tokens (Qwen, Gemma, Mistral), the first token
of 87 is 8, and every score would be wrong by a factor of ten without looking wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from em_interp.behaviour.judges.endpoint import Failed
from em_interp.behaviour.judges.reading import numbers_among
from em_interp.behaviour.judges.request import Reply, request_for
from em_interp.config import EndpointConfig
from em_interp.errors import InputError

PROBE = "This is a test. Reply with the number 100 alone: no words before it, no explanation after it."


def choose_mode(ask: Callable[[dict[str, Any]], Reply], config: EndpointConfig) -> tuple[str, str]:
    """The mode, `expected` or `sampled`, and why. Where the config says `auto`, the expected value is preferred.

    Sends one request, and a second where the mode is `sampled`. Raises InputError where the server cannot do what is
    wanted, or answers neither.
    """
    why = "as the config says"
    if config.mode != "sampled" and not config.reasoning:
        fault = _fault(ask, config)
        if fault is None:
            return "expected", "a number up to 100 is one token and its log-probability is given"
        if config.mode == "expected":
            raise InputError(
                f"the judge {config.model} cannot be scored by expected value: {fault}; use mode sampled or auto"
            )
        why = fault
    try:
        ask(request_for(config, PROBE, "sampled"))
    except Failed as error:
        raise InputError(f"the judge {config.model} at {config.base_url} does not answer: {error}") from None
    return "sampled", why


def _fault(ask: Callable[[dict[str, Any]], Reply], config: EndpointConfig) -> str | None:
    """What stands against the expected value, or None."""
    try:
        reply = ask(request_for(config, PROBE, "expected"))
    except Failed as error:
        return f"the server refused a request for log-probabilities ({error})"
    if reply.top is None:
        return "the server returned no log-probabilities"
    numbers = numbers_among([token for token, _ in reply.top])
    if any(number > 9 for number in numbers):
        return None
    if numbers:
        return "a number of two digits takes this model several tokens, so the first is not the score"
    return f"told to reply with 100, its likeliest tokens hold no number (the first is {reply.top[0][0][:20]!r})"
