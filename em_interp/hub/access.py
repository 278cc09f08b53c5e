"""Requests to the Hub, patient with a busy server, and their failures as one line that says what to do.

huggingface_hub does the talking: it knows the endpoint's headers, the stored token and how long a server wants to be
left alone. It is imported when something is asked, so that a machine without it can do everything else.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from em_interp.errors import InputError

RETRIES = 5
WAIT = 1.0  # seconds before the first retry; doubles up to MAX_WAIT, unless the server names a time itself
MAX_WAIT = 8.0
TIMEOUT, FIRST_TIMEOUT = 60.0, 15.0  # seconds without a byte; of the request that tells whether there is a network
BUSY = (408, 429, 500, 502, 503, 504)  # HTTP statuses that may pass
_ONE_AT_A_TIME = threading.RLock()


def endpoint() -> str:
    """The Hub's address: HF_ENDPOINT, or the public one."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


@dataclass(frozen=True)
class Repository:
    """A model repository on the Hub, as this machine may see it. The token is asked for at each request, never kept."""

    name: str
    endpoint: str

    @property
    def page(self) -> str:
        """Its address for a browser, and for `git clone`."""
        return f"{self.endpoint}/{self.name}"

    def get(self, url: str, first: bool = False) -> Any:
        """The response to a GET of `url`, after as many tries as it takes or RETRIES.

        A `first` request gives up at once where there is no connection: offline is told without a wait.
        """
        from huggingface_hub.errors import HTTPError
        from huggingface_hub.utils import hf_raise_for_status, http_backoff

        response = http_backoff(
            "GET",
            url,
            headers=_headers(),
            timeout=FIRST_TIMEOUT if first else TIMEOUT,
            max_retries=RETRIES,
            base_wait_time=WAIT,
            max_wait_time=MAX_WAIT,
            retry_on_exceptions=() if first else HTTPError,
            retry_on_status_codes=BUSY,
        )
        hf_raise_for_status(response)
        return response


def token() -> str | None:
    """HF_TOKEN, or the token that `hf auth login` stored; None will do for what is public."""
    from huggingface_hub import get_token

    found = get_token()
    if found and not (found.isascii() and found.isprintable() and " " not in found):
        raise InputError("HF_TOKEN (or the stored token) holds characters that no token has; give a valid one")
    return found


def _headers() -> dict[str, str]:
    return {"user-agent": "em_interp"} | ({"authorization": f"Bearer {found}"} if (found := token()) else {})


def repository(name: str) -> Repository:
    """The repository `name`. Raises InputError where huggingface_hub is not installed."""
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        raise InputError(
            f"{name} is on the Hub, which needs huggingface_hub: pip install 'em-interp[hub]' "
            f"(or clone {endpoint()}/{name} and give the folder)"
        ) from None
    return Repository(name, endpoint())


@contextmanager
def in_one_line(repo: Repository, revision: str, fetching: bool = True) -> Iterator[None]:
    """Whatever the Hub or the way to it does wrong inside the block is raised as an InputError of one line.

    `fetching` from it may be done by other means, which the line then names. One block runs at a time: what the block
    silences is silenced for the whole process.
    """
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    otherwise = f", or clone {repo.page} elsewhere and give the folder" if fetching else ""
    try:
        with _ONE_AT_A_TIME, _quiet():
            yield
    except OfflineModeIsEnabled:
        before = f" and {repo.name} has not been fetched before" if fetching else ""
        raise InputError(f"HF_HUB_OFFLINE is set{before}; unset it{otherwise}") from None
    except HfHubHTTPError as error:
        raise InputError(_refusal(error.response, repo, revision)) from None
    except (HTTPError, UnicodeError) as error:  # no connection, or an endpoint that is no address
        reason = " ".join(str(error).split()) or type(error).__name__
        what = f"{repo.name} is no folder here, and the Hub" if fetching else "the Hub"
        hint = f"check the network and HF_ENDPOINT{otherwise}"
        raise InputError(f"{what} at {repo.endpoint} could not be reached ({reason}); {hint}") from None


def _refusal(response: Any, repo: Repository, revision: str) -> str:
    """What a refusing answer means, and what to do about it. An anonymous 429 can look like a 401."""
    status, code = response.status_code, response.headers.get("X-Error-Code", "")
    said = " ".join(response.headers.get("X-Error-Message", "").split())
    if code == "GatedRepo":
        return f"{repo.name} is gated: accept its terms at {repo.page}, then set HF_TOKEN to a token of that account"
    if code == "RevisionNotFound":
        return f"{repo.name} has no revision {revision!r}; expected a branch, a tag or a commit of {repo.page}"
    if status in BUSY:
        hint = "" if token() else "; a token in HF_TOKEN is allowed more"
        return f"the Hub at {repo.endpoint} is busy ({status}){hint}; try later: the same call goes on where it stopped"
    if status == 401 and "credentials" in said:
        return f"the Hub at {repo.endpoint} does not know the token in HF_TOKEN (or the stored one): give a valid one"
    if status in (401, 404):
        hint = "the token in use may not see it" if token() else "if it is private, or much was asked, set HF_TOKEN"
        return f"{repo.name} is no folder here and not on the Hub at {repo.endpoint}: check the name; {hint}"
    if status == 403:
        why = f" ({said})" if said else ""
        return f"the Hub at {repo.endpoint} forbids this for {repo.name}{why}: HF_TOKEN needs a token that may do it"
    return f"the Hub at {repo.endpoint} answers {status} for {repo.name}: {said or response.reason_phrase}"


@contextmanager
def _quiet() -> Iterator[None]:
    """huggingface_hub without its warnings and bars on stderr: the outcome is what is told."""
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
