"""The request for one score, and the reply to it, reduced to what a score is made of."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from email.utils import parsedate_to_datetime
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn
from urllib.parse import urlsplit

from em_interp.config import EndpointConfig
from em_interp.errors import InputError

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


# --------
# What was answered already: one line a request in an append-only file, found by the hash of the exact request.


class RequestCache:
    """Replies by request, on disk from the moment they arrive; only their places are kept in memory.

    A reply whose line was cut off by a kill is forgotten. Lines are plain JSON and appending needs no locks of the
    file system, so the file may lie on a cluster's network disk; one process at a time writes it. With `read_only`
    nothing is made or mended. Raises InputError for a file with a damaged line.
    """

    def __init__(self, file: Path, read_only: bool = False) -> None:
        self._file, self._read_only = file, read_only
        self._places: dict[str, tuple[int, int]] = {}
        self._end = 0
        self._lock = threading.Lock()
        self._claims = [threading.Lock() for _ in range(1024)]
        self._open: FileIO | None = None
        if file.exists():
            self._index()

    def __enter__(self) -> RequestCache:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    @contextmanager
    def claimed(self, key: str) -> Iterator[None]:
        """Keeps other threads from the same request, so that the second finds what the first was answered."""
        with self._claims[int(key[:8], 16) % len(self._claims)]:
            yield

    def get(self, key: str) -> Reply | None:
        """The reply to a request, or None where it has not been answered."""
        with self._lock:
            place = self._places.get(key)
            if place is None:
                return None
            handle = self._handle()
            handle.seek(place[0])
            line = handle.read(place[1])
        return Reply.from_dict(json.loads(line)["reply"])

    def put(self, key: str, reply: Reply) -> None:
        """Keep a reply. Raises OSError where the disk is full; what is kept stays whole."""
        line = (json.dumps({"key": key, "reply": reply.to_dict()}) + "\n").encode()
        with self._lock:
            handle = self._handle()
            handle.seek(self._end)
            written = 0
            try:
                while written < len(line):
                    written += handle.write(line[written:])
            except OSError:
                handle.truncate(self._end)
                raise
            self._places[key] = (self._end, len(line))
            self._end += len(line)

    def close(self) -> None:
        """Close the file."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _handle(self) -> FileIO:
        if self._open is None:
            if not self._read_only and not self._file.exists():
                self._file.parent.mkdir(parents=True, exist_ok=True)
                self._file.touch()
            self._open = FileIO(self._file, "rb" if self._read_only else "r+b")
        return self._open

    def _index(self) -> None:
        """Find every whole line; what a kill left behind them is overwritten by the next reply."""
        with self._file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    values = json.loads(line)
                    Reply.from_dict(values["reply"])
                    self._places[values["key"]] = (self._end, len(line))
                except (ValueError, LookupError, TypeError):
                    raise InputError(f"{self._file}, line {number} is damaged; remove that line to go on") from None
                self._end += len(line)
        if not self._read_only and self._end < self._file.stat().st_size:
            os.truncate(self._file, self._end)


# --------
# A careful client for one call of one protocol: POST …/chat/completions.
# The standard library does it: judging needs no more of HTTP, and a laptop that only analyses judged answers
# installs nothing for it. Proxies of the environment are used, except for this machine. Redirects are not followed,
# since they would carry the key to another host.


PATIENCE = 20  # requests that fail one after another before the stage is stopped
EMPTY = 5  # replies with nothing in them before nothing is taken for the judge's answer
LONGEST_WAIT = 300.0  # seconds; a server that wants more is asked earlier
AGAIN = (408, 409, 425, 429)  # and 5xx: worth another try
FATAL = (401, 402, 404, 405)  # no request can succeed
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Failed(Exception):
    """One request that got no reply: refused by the server, or all its tries were in vain."""


class Refused(Failed):
    """The server understood and said no, as to a prompt that is too long; another try would be in vain."""


class Stopped(Failed):
    """The client was told to stop while it waited for another try."""


class _Fault(Exception):
    """A try that may succeed when repeated; `wait` in seconds where the server named a time."""

    def __init__(self, says: str, wait: float | None = None) -> None:
        super().__init__(says)
        self.wait = wait


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


@dataclass
class Endpoint:
    """One server. `key` goes into the Authorization header and nowhere else; `pause` (s) is the first back-off.

    Safe to use from many threads: a 429 with a time holds all of them back.
    """

    url: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 120.0
    tries: int = 8
    pause: float = 0.5
    _stop: threading.Event = field(default_factory=threading.Event, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _not_before: float = field(default=0.0, init=False, repr=False)
    _failed: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        handlers: list[urllib.request.BaseHandler] = [_Stay()]
        if urlsplit(self.url).hostname in LOOPBACK:
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    def complete(self, body: dict[str, Any]) -> Reply:
        """The reply to a chat completion, tried up to `tries` times with growing pauses.

        Raises Refused or Failed for this request alone, and InputError where no request can succeed: a wrong key,
        address or model, or `PATIENCE` requests failing one after another.
        """
        try:
            reply = self._tries(body)
        except Stopped:
            raise
        except Failed as error:
            self._count_failure(error)
            raise
        with self._lock:
            self._failed = 0
        return reply

    def stop(self) -> None:
        """Let no waiting thread try again; a request under way is still finished."""
        self._stop.set()

    def _tries(self, body: dict[str, Any]) -> Reply:
        data, said, empty = json.dumps(body).encode(), "", 0
        for number in range(self.tries):
            self._wait_for_turn()
            try:
                reply = self._once(data)
            except _Fault as fault:
                said = str(fault)
                if number + 1 < self.tries:
                    self._back_off(number, fault.wait)
                continue
            empty += _is_empty(reply)
            if not _is_empty(reply) or empty == EMPTY:
                return reply
            self._back_off(0, None)
        raise Failed(f"no reply after {self.tries} tries, the last: {said or 'nothing in it'}")

    def _wait_for_turn(self) -> None:
        while (left := self._not_before - time.monotonic()) > 0:
            if self._stop.wait(left):
                break
        if self._stop.is_set():
            raise Stopped("stopped")

    def _back_off(self, number: int, wait: float | None) -> None:
        """Wait as long as the server asks, all threads together; else a pause that doubles, of this thread alone."""
        pause = min(self.pause * 2**number, 60.0) * random.uniform(0.5, 1.0)
        if wait is not None:
            with self._lock:
                self._not_before = max(self._not_before, time.monotonic() + min(wait, LONGEST_WAIT))
            pause = self.pause * random.random()  # so that they do not all come back at once
        self._stop.wait(pause)

    def _once(self, data: bytes) -> Reply:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "em-interp"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.url, data, headers, method="POST")
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                return parse(response.read())
        except urllib.error.HTTPError as error:
            with error:
                self._refuse(error.code, error.headers, _body(error))
        except NotAReply as error:
            raise _Fault(self._clean(str(error))) from None
        except (http.client.HTTPException, OSError) as error:  # URLError and time-outs are OSErrors
            self._cut(error)

    def _refuse(self, code: int, headers: Message, body: str) -> NoReturn:
        said = self._clean(f"{code} {body}".strip())
        if code in AGAIN or code >= 500:
            raise _Fault(said, _retry_after(headers))
        if 300 <= code < 400:
            raise InputError(f"{self.url} redirects to {headers.get('Location')}; give the address that answers itself")
        if code in FATAL:
            raise InputError(f"{self.url} answers {said}: {_usual_cause(code)}; what was answered is kept")
        raise Refused(said)

    def _cut(self, error: Exception) -> NoReturn:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise InputError(f"{self.url}: its certificate is not trusted ({reason.verify_message})") from None
        raise _Fault(f"{type(reason).__name__}: {self._clean(str(reason))}") from None

    def _count_failure(self, error: Failed) -> None:
        with self._lock:
            self._failed += 1
            if self._failed < PATIENCE:
                return
        raise InputError(
            f"{self.url}: {PATIENCE} requests failed one after another, the last with: {error}; "
            "what was answered is kept, --resume goes on"
        ) from None

    def _clean(self, text: str) -> str:
        """One line without the key, which servers like to repeat."""
        if self.key:
            text = text.replace(self.key, "***")
        return " ".join(text.split())[:300]


def _is_empty(reply: Reply) -> bool:
    """Nothing said, and nothing that explains it."""
    return not (reply.text.strip() or reply.top or reply.refusal or reply.finish in ("length", "content_filter"))


def _body(error: urllib.error.HTTPError) -> str:
    """The message in the body of an error, as most servers word it, or the body."""
    try:
        text = error.read(100_000).decode("utf-8", "replace")
    except (http.client.HTTPException, OSError):
        return ""
    try:
        said = json.loads(text)["error"]
        return str(said["message"] if isinstance(said, dict) else said)
    except (ValueError, LookupError, TypeError):
        return text


def _retry_after(headers: Message) -> float | None:
    """Seconds to wait, from a number or a date."""
    value = headers.get("Retry-After")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError):
            return None
    return max(0.0, seconds) if seconds == seconds else None


def _usual_cause(code: int) -> str:
    return {
        401: "the key is missing or wrong",
        402: "the account has no credit",
        404: "the address (which mostly ends in /v1) or the model's name is wrong",
    }.get(code, "this is no address of chat completions")
