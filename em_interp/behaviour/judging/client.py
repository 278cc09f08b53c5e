"""The client of a model's server: requests, and the endpoint that retries them until a reply is complete.

The `openai` client sends the requests, with its retries off: which reply is whole, what is worth another try and when
an endpoint is given up are decided here. All requests run in one event loop in a thread of its own, so that each can be
cancelled at any moment: by its deadline, or by Ctrl-C. Redirects are not followed, since they would carry the key to
another host; proxies of the environment are used, except for this machine.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import cache
from types import TracebackType
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from em_interp.behaviour.judging.replies import IncompleteReply, MalformedReply, Reply, parse_reply
from em_interp.config.run_config import EndpointConfig, ServerConfig
from em_interp.errors import InputError, extra_for, one_line, redact

T = TypeVar("T")
TOP_LOGPROBS = 20  # log-probabilities requested: the most that servers give


def request_for(config: EndpointConfig, prompt: str, mode: str) -> dict[str, Any]:
    """The body of a chat completion, at temperature 0.

    Mode `expected` requests one token and the log-probabilities of the likeliest; `sampled` requests the text.
    """
    body: dict[str, Any] = {"model": config.model, "messages": [{"role": "user", "content": prompt}]}
    if config.reasoning:
        return {**body, "max_completion_tokens": config.sampled_tokens}
    if mode == "expected":
        return {**body, "temperature": 0, "max_tokens": 1, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
    return {**body, "temperature": 0, "max_tokens": config.sampled_tokens}


@dataclass(frozen=True)
class Request(Generic[T]):
    """A request to an endpoint, and how its reply is read.

    Attributes:
        path: Appended to the endpoint's address.
        body: Of a POST; None for a GET.
        read: What the body of a response comes to. Raises MalformedReply where it holds no reply and IncompleteReply
            where that was cut off; both are requested again.
        causes: By HTTP status, the cause to name where no request can succeed; an empty text: only this request failed.
    """

    path: str
    body: dict[str, Any] | None
    read: Callable[[bytes], T]
    causes: Mapping[int, str] = field(default_factory=dict)


def chat_request(body: dict[str, Any]) -> Request[Reply]:
    """The request for a whole chat completion."""

    def read(content: bytes) -> Reply:
        reply = parse_reply(content)
        if fault := reply.fault(one_token=body.get("max_tokens") == 1):
            raise IncompleteReply(fault)
        return reply

    return Request("/chat/completions", body, read)


def digest(url: str, body: dict[str, Any], retest: bool = False) -> str:
    """The hash of the exact request; `retest` tells a deliberate repetition from the first request."""
    exact = json.dumps([url, body, retest] if retest else [url, body], sort_keys=True)
    return hashlib.sha256(exact.encode()).hexdigest()


MAX_FAILED_REQUESTS = 20  # one after another, before the endpoint is checked and perhaps given up
MAX_INCOMPLETE_REPLIES = 5  # cut off or empty, to one request: they may have been paid for
MAX_REPLY_BYTES = 4 * 2**20
MAX_SERVER_WAIT = 300.0  # seconds; a server that wants more is asked earlier
MAX_BACKOFF = 60.0  # seconds
GRACE = 0.5  # seconds that requests in flight have left after `stop`
RETRIED = (408, 409, 425, 429)  # statuses worth another try, besides 5xx
FILTER_STATUSES = (400, 403, 451)  # with which servers refuse what their content filter does not let through
FATAL = {
    401: "the key is missing or wrong",
    402: "the account has no credit",
    404: "the address (which mostly ends in /v1) or the model's name is wrong",
    405: "the address is not that of such a server",
}  # statuses after which no request can succeed, with their usual causes
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class RequestFailed(Exception):
    """One request without a reply: refused by the server, or all its tries failed."""


class RepliesIncomplete(RequestFailed):
    """One request whose replies were cut off or empty."""


class EndpointStopped(RequestFailed):
    """The endpoint was stopped before the reply came."""


class ContentFiltered(Exception):
    """A content filter of the server refused the request."""


class _Retryable(Exception):
    """A try that may succeed when repeated; `wait` in seconds where the server named a time."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass
class Endpoint:
    """A model's server, with retries, deadlines and bounds. Open as a context; used from many threads.

    Args:
        base_url: the address to which the paths of requests are appended, such as `/chat/completions`.
        key: goes into the Authorization header and nowhere else.
        timeout: seconds for one try, from connecting to the last byte of the reply.
        max_retries: of a request after its first try.
        initial_backoff: seconds before the first retry; doubles.
        check: a request that a working endpoint answers: whether it does tells failing prompts from a failing endpoint.
    """

    base_url: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 120.0
    max_retries: int = 7
    initial_backoff: float = 0.5
    check: Request[Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.url = url_of(self.base_url)
        self._client = _openai_client(self.base_url, self.key)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="em_interp-client", daemon=True)
        self._stopping = asyncio.Event()
        self._not_before, self._failed = 0.0, 0

    def __enter__(self) -> Endpoint:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._submit(self._close()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def complete(self, body: dict[str, Any]) -> Reply:
        """The whole reply to a chat completion; a filter's refusal is one. Raises what else `send` raises."""
        try:
            return self.send(chat_request(body)).redacted(self.key)
        except ContentFiltered as error:
            return Reply("", "content_filter", refusal=str(error))

    def send(self, request: Request[T]) -> T:
        """The value read from a request's reply; texts in it are as the server wrote them.

        Raises RequestFailed for this request alone, ContentFiltered where a content filter refused it, and InputError
        where no request can succeed: a wrong key, address or model, or `MAX_FAILED_REQUESTS` requests failing one after
        another and `check` as well.
        """
        try:
            reply: T = self._submit(self._send(request)).result()
        except CancelledError:
            raise EndpointStopped("stopped") from None
        return reply

    def stop(self) -> None:
        """Send nothing more; requests in flight have `GRACE` seconds left."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._loop.call_soon_threadsafe(self._loop.call_later, GRACE, self._cancel)

    def redact(self, text: str) -> str:
        """A message from the server on one line, without the key, which servers like to repeat."""
        return one_line(redact(text, self.key))

    def _submit(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _cancel(self) -> list[asyncio.Task[Any]]:
        others = [task for task in asyncio.all_tasks(self._loop) if task is not asyncio.current_task(self._loop)]
        for task in others:
            task.cancel()
        return others

    async def _close(self) -> None:
        await asyncio.gather(*self._cancel(), return_exceptions=True)
        await self._client.close()

    async def _send(self, request: Request[T]) -> T:
        try:
            reply = await self._try(request)
        except EndpointStopped:
            raise
        except ContentFiltered:
            self._failed = 0
            raise
        except RequestFailed as error:
            await self._count_failure(error)
            raise
        self._failed = 0
        return reply

    async def _count_failure(self, error: RequestFailed) -> None:
        """After many failures in a row the endpoint is given up, unless it answers `check`: then the prompts failed."""
        self._failed += 1
        if self._failed < MAX_FAILED_REQUESTS:
            return
        self._failed = 0
        if self.check is not None:
            try:
                await self._try(self.check)
                return
            except ContentFiltered:
                return
            except RequestFailed as failed:
                error = failed
        raise InputError(
            f"{self.base_url}: {MAX_FAILED_REQUESTS} requests failed one after another, the last with: {error}; "
            "what was answered is kept, resume=True continues"
        )

    async def _try(self, request: Request[T]) -> T:
        """The first whole reply, with growing pauses between the tries."""
        message, incomplete = "", 0
        for number in range(1, self.max_retries + 2):
            await self._pause(self._not_before - time.monotonic())
            wait = None
            try:
                return await self._once(request)
            except IncompleteReply as error:
                message, incomplete = self.redact(str(error)), incomplete + 1
            except _Retryable as error:
                message, wait = str(error), error.wait
            if number > self.max_retries or incomplete == MAX_INCOMPLETE_REPLIES:
                break
            await self._back_off(number, wait)
        raise (RepliesIncomplete if incomplete else RequestFailed)(
            f"no whole reply after {number} tries, the last: {message}"
        )

    async def _back_off(self, number: int, wait: float | None) -> None:
        """Wait as long as the server asks, all requests together; else a pause that doubles, of this request alone."""
        pause = min(self.initial_backoff * 2.0 ** min(number - 1, 100), MAX_BACKOFF) * random.uniform(0.5, 1.0)
        if wait is not None:
            self._not_before = max(self._not_before, time.monotonic() + min(wait, MAX_SERVER_WAIT))
            pause = self.initial_backoff * random.random()  # so that requests do not all resume at once
        await self._pause(pause)

    async def _pause(self, seconds: float) -> None:
        """Wait; raises EndpointStopped as soon as the endpoint is stopped."""
        if seconds > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), seconds)
        if self._stopping.is_set():
            raise EndpointStopped("stopped")

    async def _once(self, request: Request[T]) -> T:
        """The reply to one try. Raises _Retryable or IncompleteReply where another may succeed."""
        import openai

        try:
            async with asyncio.timeout(self.timeout):
                content = await self._exchange(request)
            return request.read(content)
        except IncompleteReply:
            raise
        except MalformedReply as error:
            if error.status is not None or (error.is_error and _FILTER_ERROR.search(str(error))):
                raise self._refused(error.status or 400, {}, str(error).encode(), request.causes) from None
            raise _Retryable(self.redact(str(error))) from None
        except openai.APIStatusError as error:
            response = error.response
            raise self._refused(error.status_code, response.headers, response.content, request.causes) from None
        except TimeoutError:
            raise _Retryable(f"no whole reply within {self.timeout:g} s") from None
        except (openai.APIConnectionError, OSError) as error:
            raise self._disconnected(error) from None
        except UnicodeError as error:
            raise RequestFailed(f"the prompt cannot be sent: {one_line(str(error))}") from None

    async def _exchange(self, request: Request[Any]) -> bytes:
        """The body of the response to a request."""
        import httpx2
        import openai

        options: Any = {"headers": {} if self.key else {"Authorization": openai.omit}}
        if request.body is None:
            response = await self._client.get(request.path, cast_to=httpx2.Response, options=options)
        else:
            response = await self._client.post(
                request.path, cast_to=httpx2.Response, body=request.body, options=options
            )
        return bytes(response.content)

    def _refused(self, status: int, headers: Mapping[str, str], body: bytes, causes: Mapping[int, str]) -> Exception:
        """The error that stands for a response of this status."""
        error, message = _error_in(body)
        message = self.redact(f"{status} {message}")
        if status in FILTER_STATUSES and _FILTER_ERROR.search(error) and "account" not in error.lower():
            return ContentFiltered(message)
        if (status in RETRIED or status >= 500) and status not in causes:
            return _Retryable(message, _retry_after(headers))
        if 300 <= status < 400:
            place = self.redact(headers.get("Location", "nowhere"))
            return InputError(f"{self.base_url} redirects to {place}; give the address that answers itself")
        if cause := {**FATAL, **causes}.get(status):
            return InputError(f"{self.base_url} answers {message}: {cause}; what was answered is kept")
        return RequestFailed(message)

    def _disconnected(self, error: BaseException) -> _Retryable:
        """The cause at the bottom of a connection's error."""
        while cause := error.__cause__ or error.__context__:
            error = cause
        if isinstance(error, ssl.SSLCertVerificationError):
            raise InputError(f"{self.base_url}: its certificate is not trusted ({error.verify_message})")
        number = error.errno if isinstance(error, OSError) else None
        reason = os.strerror(number) if number and number > 0 else getattr(error, "strerror", None) or error
        return _Retryable(self.redact(f"{type(error).__name__}: {reason}"))


_FILTER_ERROR = re.compile(
    r"content[ _-]?filter|content[ _-]?(management[ _-]?)?policy|content exists risk|responsible ?ai|moderation"
    r"|(input|prompt|content)\W(.{0,40}\W)?flagged|flagged_input|data[ _]?inspection|usage (policy|policies|guidelines)"
    r"|considered high risk|inappropriate content|敏感|违规|\\u654f\\u611f|\\u8fdd\\u89c4",
    re.IGNORECASE,
)  # how servers word it that a filter refused a prompt or its answer; in Chinese also as JSON escapes the words


def _error_in(body: bytes) -> tuple[str, str]:
    """The error in a body, whole and its message alone, as most servers word it; else the body."""
    text = body.decode("utf-8", "replace")
    try:
        error = json.loads(text)["error"]
        return json.dumps(error)[:10_000], str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError, RecursionError):
        return text[:10_000], text


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from a number or a date."""
    value = headers.get("Retry-After")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return None
    return max(0.0, seconds) if seconds == seconds else None


def url_of(base_url: str) -> str:
    """The address of an endpoint's chat completions."""
    return base_url.rstrip("/") + "/chat/completions"


def open_endpoint(config: ServerConfig, base_url: str) -> Endpoint:
    """The client for a server, with the key from the environment. Raises InputError where that is not set."""
    key = None
    if config.api_key_env is not None:
        key = os.environ.get(config.api_key_env, "").strip()
        if not key:
            raise InputError(
                f"the environment variable {config.api_key_env} is not set; the server's key belongs there"
            )
        if not key.isascii() or not key.isprintable():  # the error about an invalid header would quote it
            raise InputError(f"the environment variable {config.api_key_env} holds characters that no key has")
    return Endpoint(base_url, key, config.timeout, config.max_retries, config.initial_backoff)


def _openai_client(base_url: str, key: str | None) -> Any:
    """An `openai.AsyncOpenAI` that neither retries, nor follows redirects, nor reads replies without a bound.

    It has no time-outs of its own: a try as a whole has one.
    """
    with extra_for("a model's server"):
        import openai
    import httpx2  # openai's own

    class BoundedTransport(httpx2.AsyncHTTPTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            response = await super().handle_async_request(request)
            body = bytearray()
            try:
                async for part in response.aiter_bytes():
                    body += part
                    if len(body) > MAX_REPLY_BYTES:
                        raise httpx2.ReadError(f"a reply of more than {MAX_REPLY_BYTES} bytes", request=request)
            finally:
                await response.aclose()
            headers = [pair for pair in response.headers.multi_items() if pair[0].lower() not in _ENCODING_HEADERS]
            return httpx2.Response(response.status_code, headers=headers, content=bytes(body))

    try:
        if urlsplit(base_url).port == 0:  # reading the port checks it
            raise ValueError("port 0")
        limits = httpx2.Limits()  # as many connections as there are workers
        transport = BoundedTransport(verify=_certificates(), proxy=_proxy_for(base_url), limits=limits)
        return openai.AsyncOpenAI(
            api_key=key or "none",
            base_url=base_url,
            timeout=None,
            max_retries=0,
            http_client=httpx2.AsyncClient(transport=transport, timeout=None, follow_redirects=False),
            default_headers=_HEADERS | dict.fromkeys(("OpenAI-Organization", "OpenAI-Project"), openai.omit),
        )
    except (ValueError, ImportError, httpx2.InvalidURL):
        raise InputError(f"{base_url} is no address, or the environment's proxy for it cannot be used") from None


@cache
def _certificates() -> ssl.SSLContext:
    """The authorities that are trusted, read once."""
    import httpx2

    return httpx2.create_ssl_context()


_HEADERS = {"Accept-Encoding": "identity"}
_ENCODING_HEADERS = ("content-encoding", "content-length", "transfer-encoding")


def _proxy_for(url: str) -> str | None:
    parts, proxies = urlsplit(url), getproxies()
    if parts.hostname in LOOPBACK or proxy_bypass(parts.hostname or ""):
        return None
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy
