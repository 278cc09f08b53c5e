"""The request for one score, and the reply to it, reduced to what a score is made of."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from em_interp.config import EndpointConfig

TOP = 20  # log-probabilities asked for: the most that servers give


class NotAReply(ValueError):
    """A body that is no chat completion; says what is wrong with it."""


@dataclass(frozen=True)
class Reply:
    """What a server said. `top` are the likeliest first tokens with their natural log-probabilities, if it gave any."""

    text: str
    finish: str | None = None  # stop, length, content_filter …, in the server's words
    top: tuple[tuple[str, float], ...] | None = None
    refusal: str | None = None  # where the server has a field of its own for refusing
    model: str | None = None  # the name that the server gives itself
    tokens: tuple[int, int] | None = None  # of prompt and reply, as the server counted

    def to_dict(self) -> dict[str, Any]:
        """Plain values, from which `from_dict` makes an equal reply."""
        return {
            "text": self.text,
            "finish": self.finish,
            "top": None if self.top is None else [list(pair) for pair in self.top],
            "refusal": self.refusal,
            "model": self.model,
            "tokens": None if self.tokens is None else list(self.tokens),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Reply:
        """The reply that `to_dict` wrote."""
        top, tokens = values["top"], values["tokens"]
        return cls(
            values["text"],
            values["finish"],
            None if top is None else tuple((token, value) for token, value in top),
            values["refusal"],
            values["model"],
            None if tokens is None else (tokens[0], tokens[1]),
        )


def request_for(config: EndpointConfig, prompt: str, mode: str) -> dict[str, Any]:
    """The body of a chat completion, at temperature 0.

    Mode `expected` asks for one token and the log-probabilities of the `TOP` likeliest; `sampled` for the text.
    """
    body: dict[str, Any] = {"model": config.model, "messages": [{"role": "user", "content": prompt}]}
    if config.reasoning:
        return {**body, "max_completion_tokens": config.sampled_tokens}
    if mode == "expected":
        return {**body, "temperature": 0, "max_tokens": 1, "logprobs": True, "top_logprobs": TOP}
    return {**body, "temperature": 0, "max_tokens": config.sampled_tokens}


def digest(url: str, body: dict[str, Any], again: int = 0) -> str:
    """The hash of the exact request; `again` tells a repetition on purpose from the first asking."""
    exact = json.dumps([url, body, again] if again else [url, body], sort_keys=True)
    return hashlib.sha256(exact.encode()).hexdigest()


def parse(body: bytes) -> Reply:
    """The reply in the body of a response; raises NotAReply where there is none.

    Log-probabilities that are missing or malformed give `top` None, never a guess.
    """
    try:
        values = json.loads(body)
        choice = values["choices"][0]
        message = choice["message"]
        text, refusal = message.get("content"), message.get("refusal")
    except (ValueError, LookupError, TypeError, AttributeError):
        raise NotAReply(f"no chat completion: {_short(body)}") from None
    if text is not None and not isinstance(text, str):
        raise NotAReply(f"the content is no text: {_short(body)}")
    return Reply(
        text or "",
        _text(choice.get("finish_reason")),
        _top(choice),
        _text(refusal),
        _text(values.get("model")),
        _tokens(values),
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _short(body: bytes) -> str:
    text = " ".join(body.decode("utf-8", "replace").split())
    return repr(text[:100]) if text else "an empty body"


def _top(choice: dict[str, Any]) -> tuple[tuple[str, float], ...] | None:
    """The first token's alternatives, or None unless every one is a text with a log-probability."""
    try:
        pairs = [(one["token"], one["logprob"]) for one in choice["logprobs"]["content"][0]["top_logprobs"]]
    except (LookupError, TypeError):
        return None
    if not pairs or not all(isinstance(token, str) and _is_log(value) for token, value in pairs):
        return None
    return tuple((token, float(value)) for token, value in pairs)


def _is_log(value: Any) -> bool:
    """Whether it is the logarithm of a probability; rounding may lift it a little above 0."""
    return not isinstance(value, bool) and isinstance(value, (int, float)) and value < 1e-3  # NaN is not


def _tokens(values: dict[str, Any]) -> tuple[int, int] | None:
    usage = values.get("usage")
    if not isinstance(usage, dict):
        return None
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    return (counts[0], counts[1]) if all(type(count) is int for count in counts) else None  # type: ignore[return-value]
