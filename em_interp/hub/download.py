"""The Hub: a path from a repository of checkpoints, through `huggingface_hub` and the user's own Hub cache.

Of a repository only what makes up the path is fetched, and every file is checked against the size and hash that the Hub
gives. Every failure is an error of one line that says what to do.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from em_interp.errors import InputError, extra_for, listed, one_line, redact
from em_interp.layouts import (
    CHANGE_CONFIG_FILE,
    CONFIG_FILE,
    LOG_FILE,
    STEERING_FILE,
    STEP_FILES,
    WEIGHTS_FILE,
    Listing,
    SavedStep,
    listing_of_paths,
    saved_steps,
)

T = TypeVar("T")
_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
_COMMIT, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")
_SHORT = re.compile(r"Consistency check failed: file should be of size (\d+) but has size (\d+) \((?:\(…\))?(.*)\)\.")
CONFIG, MANIFEST = "config.yaml", "manifest.json"
ROOT_FILES = (CONFIG, MANIFEST, CONFIG_FILE, LOG_FILE)
DOWNLOADS_AT_ONCE = 8
TRIES = 3  # of a file that arrives whole but wrong
RETRIES = 5  # of a request to a busy Hub
MAX_SECONDS = 300.0  # of one request and its retries, besides the time that its files take
MIN_RATE = 50_000  # bytes a second, files' least on the way: a server that is slower is given up
WAIT, MAX_WAIT = 1.0, 8.0  # seconds before the first retry, which doubles up to the second
BUSY = (408, 429, 500, 502, 503, 504)  # HTTP statuses that may pass
_ONE_AT_A_TIME = threading.RLock()


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form `organisation/repository`."""
    return _HUB_ID.fullmatch(name) is not None


def is_commit(revision: object) -> TypeGuard[str]:
    """Whether `revision` is a whole commit hash: what it names never changes."""
    return isinstance(revision, str) and _COMMIT.fullmatch(revision) is not None


def fetch(name: str, revision: str | None = None) -> Path:
    """The folder in the user's Hub cache with the checkpoints of the repository `name`; it is named after the commit.

    Files that are there are not fetched again, and a commit that is there needs no network. Without a network a branch
    or tag is the commit it was when last fetched.

    Args:
        name: `organisation/repository`.
        revision: a branch, a tag or a commit; by default main.

    Raises:
        InputError: huggingface_hub is not installed, the Hub cannot be reached or refuses, a file stays wrong, or the
            repository holds no path.
    """
    revision = revision or "main"
    with in_one_line(name, revision, fetching=True):
        api = hub_api()
        commit = _with_retries(lambda: api.resolve_revision(name, revision=revision).resolved)
        if not is_commit(commit):
            raise InputError(f"{endpoint()} does not answer like the Hub: {name} at {revision} is commit {commit!r}")
        return _download(api, name, commit)


def _download(api: Any, name: str, commit: str) -> Path:
    """The folder of a commit with the files of the path in it, whole."""

    def snapshot(files: list[Any]) -> Path:
        patterns = [escape(file.path) for file in files]
        options = {"revision": commit, "allow_patterns": patterns, "max_workers": DOWNLOADS_AT_ONCE}
        return Path(_with_retries(lambda: api.snapshot_download(name, **options), sum(file.size for file in files)))

    folder = snapshot([])  # fetches the listing alone, once and for all
    files = _path_files(name, _listing(api, name, commit))
    missing = [file for file in files if not _has_size(folder / file.path, file.size)]
    for _ in range(TRIES):
        _remove(folder, missing)
        if missing:
            snapshot(missing)
        faults = {file.path: fault for file in missing if (fault := _fault(folder / file.path, file.size))}
        if not faults:
            return folder
        missing = [file for file in missing if file.path in faults]
    _remove(folder, missing)
    path, fault = next(iter(faults.items()))
    raise InputError(f"{name}: {path} arrived {TRIES} times with {fault}; does a proxy change it?")


def _listing(api: Any, name: str, commit: str) -> list[Any]:
    """The files of a commit: as they are listed in the cache, or by the Hub where the cache cannot be written."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        entries = get_cached_repo_tree(name, revision=commit)
    except CachedRepoTreeNotFoundError:
        entries = _with_retries(lambda: list(api.list_repo_tree(name, recursive=True, revision=commit)))
    return [entry for entry in entries if isinstance(getattr(entry, "size", None), int)]


def _path_files(name: str, files: list[Any]) -> list[Any]:
    """The files that make up the path: each step's adapter and config, the logs, and what describes the run.

    Of the logs the run's own and that of the last step that has one; of every step where they are named after epochs.
    Raises InputError where there is no step, and where a step has no adapter that can be read.
    """
    by_path = {file.path: file for file in files}
    names = listing_of_paths(by_path)
    steps = saved_steps(names, name)
    if not steps:
        found = listed(sorted(names("")), 8) or "nothing"
        raise InputError(f"{name} holds no checkpoint-<step> folders, so no path; it holds {found}")
    wanted = [path for step in steps for path in _step_paths(step, names, name)]
    logs = [path for step in steps if (path := f"{step.path}/{LOG_FILE}") in by_path]
    wanted += [*ROOT_FILES, *(logs if steps[0].layout.counts == "epochs" else logs[-1:])]
    return [by_path[path] for path in dict.fromkeys(wanted) if path in by_path]


def _step_paths(step: SavedStep, names: Listing, name: str) -> list[str]:
    """The files of one step that are read; raises InputError where it has no adapter."""
    if not names(step.path):  # a file of MLX, whose config is beside it
        return [step.path, f"{step.path.rpartition('/')[0]}/{CONFIG_FILE}".lstrip("/")]
    inside = names(step.place)
    if not set(STEP_FILES) & set(inside):
        expected = f"{WEIGHTS_FILE} (or {STEERING_FILE})"
        raise InputError(f"{name}: {step.place} holds {listed(sorted(inside), 8)}; expected {expected}")
    return [f"{step.place}/{file}" for file in (CONFIG_FILE, *STEP_FILES, CHANGE_CONFIG_FILE) if file in inside]


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _fault(path: Path, size: int) -> str | None:
    """What is wrong with a file that was just fetched; None where its size and hash are those that the Hub gives.

    The cache links each file to one that is named by its hash: sha256 of what is in LFS, git's of all else.
    """
    if not _has_size(path, size):
        return f"{path.stat().st_size} bytes instead of {size}"
    expected = path.readlink().name if path.is_symlink() else ""
    with path.open("rb") as content:
        if _SHA256.fullmatch(expected) and hashlib.file_digest(content, "sha256").hexdigest() != expected:
            return "another sha256 than the Hub gives"
        if _COMMIT.fullmatch(expected) and _git_hash(content.read()) != expected:
            return "another git hash than the Hub gives"
    return None


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _remove(folder: Path, files: list[Any]) -> None:
    """Remove files from the cache, with the blobs that they link to."""
    for file in files:
        path = folder / file.path
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def hub_api() -> Any:
    """The `HfApi` of the Hub that HF_ENDPOINT names, with the token in use."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint(), token=token(), library_name="em_interp")


def endpoint() -> str:
    """The Hub's address: HF_ENDPOINT, or the public one."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def token() -> str | None:
    """HF_TOKEN, or the token that `hf auth login` stored; None will do for what is public."""
    from huggingface_hub import get_token

    token = get_token()
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise InputError("HF_TOKEN (or the stored token) holds characters that no token has; give a valid one")
    return token


def time_limit(size: int) -> float:
    """The most that a request with `size` bytes of files may take, with its retries."""
    return min(MAX_SECONDS + size / MIN_RATE, threading.TIMEOUT_MAX)


def _with_retries(call: Callable[[], T], size: int = 0) -> T:
    """The result of the call, after up to `RETRIES` retries of failures that may be temporary."""
    end = time.monotonic() + time_limit(size)
    for retry in range(RETRIES):
        try:
            return interruptibly(call, end - time.monotonic())
        except Exception as error:
            if not _may_pass(error):
                raise
        time.sleep(min(WAIT * 2**retry, MAX_WAIT))
    return interruptibly(call, end - time.monotonic())


class TooSlow(Exception):
    """An answer of the Hub has not come as a whole in its time."""


class OddAnswer(Exception):
    """An answer that the Hub's client cannot read, such as a log-in page; its cause is the client's own error."""


def interruptibly(call: Callable[[], T], seconds: float) -> T:
    """What a call of the Hub's client returns, made in a thread that neither Ctrl-C nor the end of `seconds` waits for.

    Raises TooSlow, OddAnswer, and what the client raises where the Hub refuses or cannot be reached.
    """
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="em_interp-hub", daemon=True).start()
    wait([future], max(seconds, 0.0))
    if not future.done():
        raise TooSlow(
            f"the Hub at {endpoint()} sends too slowly: an answer has not come as a whole in the time that "
            f"{MIN_RATE // 1000} kB a second take"
        )
    try:
        return future.result()
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        if isinstance(error, OSError):
            raise
        raise OddAnswer(str(error)) from error


def _may_pass(error: BaseException) -> bool:
    """Whether it is a busy Hub, a connection that broke, or a file that arrived short; no connection at all is not."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError):
            return cause.response.status_code in BUSY
        if isinstance(cause, HTTPError):
            return type(cause).__name__ not in ("ConnectError", "ConnectTimeout", "UnsupportedProtocol", "ProxyError")
    return bool(_SHORT.search(str(error))) or isinstance(error, RuntimeError)  # of the client that threads share


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


@contextmanager
def in_one_line(repo: str, revision: str, fetching: bool) -> Iterator[None]:
    """Every failure of the Hub or of the connection inside the block is raised as an InputError of one line.

    One block runs at a time: what the block silences is silenced for the whole process.
    """
    otherwise = f", or clone {endpoint()}/{repo} and give the folder" if fetching else ""
    with extra_for(f"the Hub ({repo})", otherwise):
        import huggingface_hub  # noqa: F401
    try:
        with _ONE_AT_A_TIME, _quiet():
            yield
    except InputError:
        raise
    except Exception as error:
        message = _explained(error, repo, revision, fetching)
        if message is None:
            raise
        raise InputError(message) from None


def _explained(error: Exception, repo: str, revision: str, fetching: bool) -> str | None:
    """What the error means and what to do about it; None where it is not one of the Hub's."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled

    place, otherwise = endpoint(), f", or clone {endpoint()}/{repo} elsewhere and give the folder" if fetching else ""
    again = "what came is kept, and the same call continues" if fetching else "the same call starts the upload again"
    if isinstance(error, TooSlow):
        return f"{error}; {again}"
    for cause in _causes(error):
        if isinstance(cause, OfflineModeIsEnabled):
            before = f" and {repo} has not been fetched before" if fetching else ""
            return f"HF_HUB_OFFLINE is set{before}; unset it{otherwise}"
        if isinstance(cause, HfHubHTTPError):
            return _refusal(cause.response, repo, revision, again)
        if isinstance(cause, (HTTPError, UnicodeError)):  # no connection, or an endpoint that is no address
            what = f"{repo} is no folder here, and the Hub" if fetching else "the Hub"
            reason = _text(cause) or type(cause).__name__
            return f"{what} at {place} could not be reached ({reason}); check the network and HF_ENDPOINT{otherwise}"
        if isinstance(cause, HFValidationError):
            return f"{repo!r} cannot be the name of a repository: {_text(cause)}"
    if isinstance(error, OSError) and error.errno:
        file = error.filename or constants.HF_HUB_CACHE
        return f"{file} cannot be {'written' if fetching else 'read'}: {error.strerror}"
    if short := _SHORT.search(str(error)):
        return f"{repo}: {short[3]} arrived with {short[2]} bytes instead of {short[1]}; does a proxy change it?"
    if isinstance(error, (OSError, RuntimeError)):
        return f"{place}/{repo}: {_text(error)}"
    if isinstance(error, OddAnswer):
        return f"{place} does not answer like the Hub (a log-in page?): {_text(error.__cause__)}"
    return None


def _text(error: object) -> str:
    """A message of the server or of a library on one line, without the token."""
    from huggingface_hub import get_token

    return one_line(redact(str(error), get_token()))


def _refusal(response: Any, repo: str, revision: str, again: str) -> str:
    """The meaning of a refusal by the Hub, and what to do about it. An anonymous 429 can look like a 401."""
    status, code, place = response.status_code, response.headers.get("X-Error-Code", ""), endpoint()
    message = _text(response.headers.get("X-Error-Message", ""))
    if code == "GatedRepo":
        return f"{repo} is gated: accept its terms at {place}/{repo}, then set HF_TOKEN to a token of that account"
    if code == "RevisionNotFound":
        return f"{repo} has no revision {revision!r}; expected a branch, a tag or a commit of {place}/{repo}"
    if status in BUSY:
        hint = "" if token() else "; a token in HF_TOKEN is allowed more"
        return f"the Hub at {place} is busy ({status}){hint}; try later: {again}"
    if status == 401 and "credentials" in message:
        return f"the Hub at {place} does not know the token in HF_TOKEN (or the stored one): give a valid one"
    if status in (401, 404):
        hint = "the token in use may not see it" if token() else "if it is private, or much was asked, set HF_TOKEN"
        return f"{repo} is no folder here and not on the Hub at {place}: check the name; {hint}"
    if status == 403:
        why = f" ({message})" if message else ""
        return f"the Hub at {place} forbids this for {repo}{why}: HF_TOKEN needs a token that may do it"
    return f"the Hub at {place} answers {status} for {repo}: {message or response.reason_phrase}"


@contextmanager
def _quiet() -> Iterator[None]:
    """huggingface_hub without its warnings and bars on stderr."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    level = logging.get_verbosity()
    hide = "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ and not are_progress_bars_disabled()
    logging.set_verbosity_error()
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if hide:
            enable_progress_bars()
