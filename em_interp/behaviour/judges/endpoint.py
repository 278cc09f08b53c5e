"""A careful client for one call of one protocol: POST …/chat/completions.

The standard library does it: judging needs no more of HTTP, and a laptop that only analyses judged answers installs
nothing for it. Proxies of the environment are used, except for this machine. Redirects are not followed, since they
would carry the key to another host.
"""

from __future__ import annotations

import http.client
import json
import random
import ssl
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn
from urllib.parse import urlsplit

from em_interp.behaviour.judges.request import NotAReply, Reply, parse
from em_interp.errors import InputError

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
