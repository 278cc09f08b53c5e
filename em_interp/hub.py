"""Names on the Hub, and which of a repository's files make up a path."""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import get_ident
from typing import Any, TypeGuard
from urllib.parse import quote, urlsplit

import yaml

from em_interp.errors import InputError
from em_interp.files import read_json, read_text, to_json
from em_interp.run import Run, open_run

_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
CHECKPOINT = re.compile(r"(?:checkpoints/)?checkpoint-([0-9]+)/([^/]+)")  # both public layouts


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form `organisation/repository`."""
    return _HUB_ID.fullmatch(name) is not None


def is_commit(revision: object) -> TypeGuard[str]:
    """Whether `revision` is a whole commit hash: what it names never changes."""
    return isinstance(revision, str) and _COMMIT.fullmatch(revision) is not None


# --------
# Requests to the Hub, patient with a busy server, and their failures as one line that says what to do.
# huggingface_hub does the talking: it knows the endpoint's headers, the stored token and how long a server wants to
# be left alone. It is imported when something is asked, so that a machine without it can do everything else.


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


# --------
# What a repository holds at one commit: its files with their sizes and hashes.


WEIGHTS, STEERING, ADAPTER_CONFIG, LOG = (
    "adapter_model.safetensors",
    "steering_vector.pt",
    "adapter_config.json",
    "trainer_state.json",
)
CHANGE = ("weight_change.safetensors", "weight_change.json")  # a step of full fine-tuning, without its full weights
AT_ROOT = ("config.yaml", "manifest.json", ADAPTER_CONFIG, LOG)


@dataclass(frozen=True)
class RemoteFile:
    """One file as the Hub lists it."""

    path: str
    size: int  # bytes
    sha256: str | None  # of a file in LFS
    blob: str | None  # git's hash of any other file

    def fault(self, content: bytes) -> str | None:
        """What is wrong with `content` as this file; None where it is the file, whole."""
        if len(content) != self.size:
            return f"{len(content)} bytes instead of {self.size}"
        if self.sha256:
            return None if hashlib.sha256(content).hexdigest() == self.sha256 else "another sha256 than is listed"
        if self.blob:
            git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
            return None if git.hexdigest() == self.blob else "another git hash than is listed"
        return None


def commit_of(repo: Repository, revision: str) -> tuple[str, list[str]]:
    """The commit that `revision` is now, and the paths in it. One request, the first one of any fetch."""
    url = f"{repo.endpoint}/api/models/{repo.name}/revision/{quote(revision, safe='')}"
    info = _json(repo.get(url, first=True), repo)
    sha = info.get("sha") if isinstance(info, dict) else None
    if not is_commit(sha) or (is_commit(revision) and sha != revision):
        raise InputError(f"{repo.endpoint} does not answer like the Hub: {repo.name} at {revision} is commit {sha!r}")
    return sha, [str(file.get("rfilename")) for file in info.get("siblings") or []]


def list_files(repo: Repository, commit: str) -> list[RemoteFile]:
    """Every file of a commit: one listing, over as many pages as the Hub makes of it."""
    url: str | None = f"{repo.endpoint}/api/models/{repo.name}/tree/{commit}?recursive=true&expand=false"
    files: list[RemoteFile] = []
    seen: set[str] = set()
    while url:
        if url in seen:
            raise InputError(f"{repo.endpoint} does not answer like the Hub: its listing of {repo.name} never ends")
        seen.add(url)
        response = repo.get(url)
        files += _page(_json(response, repo), repo)
        url = _next(response, repo)
    return files


def _page(entries: Any, repo: Repository) -> list[RemoteFile]:
    try:
        return [_file(entry) for entry in entries if entry["type"] == "file"]
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{repo.endpoint} does not answer like the Hub: its listing of {repo.name} is none") from None


def _file(entry: dict[str, Any]) -> RemoteFile:
    lfs = entry.get("lfs")
    return RemoteFile(
        str(entry["path"]), int(entry["size"]), lfs["oid"] if lfs else None, None if lfs else entry.get("oid")
    )


def _next(response: Any, repo: Repository) -> str | None:
    """The next page, at our endpoint whatever host the link names: a mirror passes on links to the original."""
    link = response.links.get("next", {}).get("url")
    if link is None:
        return None
    host, parts = urlsplit(repo.endpoint), urlsplit(link)
    return f"{host.scheme}://{host.netloc}{parts.path}?{parts.query}"


def _json(response: Any, repo: Repository) -> Any:
    try:
        return response.json()
    except ValueError:
        raise InputError(f"{repo.endpoint} does not answer like the Hub: it sent no JSON (a log-in page?)") from None


def needed(files: list[RemoteFile], repo: Repository) -> list[RemoteFile]:
    """The files that make up the path: each step's adapter and config, one log, and what describes the run.

    Of the logs only the one that is read: the run's own, else that of the last step that has one. Raises InputError
    where there is no step, and where a step has no adapter that can be read.
    """
    steps: dict[str, dict[str, RemoteFile]] = {}
    for file in files:
        if match := CHECKPOINT.fullmatch(file.path):
            steps.setdefault(file.path.rpartition("/")[0], {})[match[2]] = file
    if not steps:
        there = ", ".join(sorted({file.path.split("/")[0] for file in files})[:8]) or "nothing"
        raise InputError(f"{repo.name} holds no checkpoint-<step> folders, so no path; it holds {there}")
    for folder, held in steps.items():
        if not {WEIGHTS, STEERING, CHANGE[0]} & set(held):
            there = ", ".join(sorted(held))
            raise InputError(f"{repo.name}: {folder} holds {there}; expected {WEIGHTS} (or {STEERING})")
    root = {file.path: file for file in files if file.path in AT_ROOT}
    logs = [folder for folder, held in steps.items() if LOG in held]
    last = [] if LOG in root or not logs else [steps[max(logs, key=lambda folder: int(folder.rpartition("-")[2]))][LOG]]
    adapters = [
        held[name] for held in steps.values() for name in (ADAPTER_CONFIG, WEIGHTS, STEERING, *CHANGE) if name in held
    ]
    return [*root.values(), *adapters, *last]


def is_there(file: RemoteFile, folder: Path) -> bool:
    """Whether `folder` has the file, by its size: what was written there was checked before."""
    try:
        return (folder / file.path).stat().st_size == file.size
    except OSError:
        return False


# --------
# Fetching: a repository of checkpoints as a folder in the user's cache, whole before it is used.


WORKERS = 8  # downloads at a time
TRIES = 3  # of a file that arrives whole but wrong


def fetch(name: str, revision: str | None = None) -> Path:
    """A folder with the checkpoints of the repository `name`, in the user's cache; its own name is the commit.

    `revision` is a branch, a tag or a commit (default: main). Only what a path needs is fetched, by one listing and
    parallel downloads; each file is checked against the size and hash listed, and appears only when whole. What is
    there is never fetched again, and a whole commit hash that is there needs no network. With HF_HUB_OFFLINE set a
    branch or tag is the commit it was when last fetched.

    Raises InputError, in one line, where huggingface_hub is not installed, where the Hub cannot be reached or refuses,
    and where the repository holds no path.
    """
    repo, revision = repository(name), revision or "main"
    place = cache_folder() / name.replace("/", "--")
    try:
        with in_one_line(repo, revision):
            commit = _commit(repo, revision, place)
            missing = [file for file in _files(repo, commit, place) if not is_there(file, place / commit)]
            _download(repo, commit, missing, place / commit)
    except OSError as error:
        raise InputError(f"{place} cannot be written: {error.strerror or error}") from error
    return place / commit


def cache_folder() -> Path:
    """Where fetched repositories are kept: in $EM_INTERP_CACHE, or the user's cache folder."""
    import platformdirs

    return Path(os.environ.get("EM_INTERP_CACHE") or platformdirs.user_cache_dir("em_interp")) / "hub"


def _commit(repo: Repository, revision: str, place: Path) -> str:
    from huggingface_hub.errors import OfflineModeIsEnabled

    if is_commit(revision) and _listing(place, revision).is_file():
        return revision
    ref = place / "refs" / quote(revision, safe="")
    try:
        commit, _ = commit_of(repo, revision)
    except OfflineModeIsEnabled:
        if ref.is_file():
            return read_text(ref)
        raise
    _put(ref, commit.encode())
    return commit


def _files(repo: Repository, commit: str, place: Path) -> list[RemoteFile]:
    """The needed files of a commit, which is listed once and for all: a commit never changes."""
    kept = _listing(place, commit)
    if kept.is_file():
        return needed([RemoteFile(**values) for values in read_json(kept)], repo)
    files = list_files(repo, commit)
    _put(kept, to_json([asdict(file) for file in files]).encode())
    return needed(files, repo)


def _listing(place: Path, commit: str) -> Path:
    return place / "listings" / f"{commit}.json"


def _download(repo: Repository, commit: str, files: Iterable[RemoteFile], folder: Path) -> None:
    def one(file: RemoteFile) -> None:
        _put(folder / file.path, _content(repo, commit, file))

    with ThreadPoolExecutor(WORKERS, thread_name_prefix="em_interp-hub") as pool:
        try:
            for _ in pool.map(one, files):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _content(repo: Repository, commit: str, file: RemoteFile) -> bytes:
    """The bytes of a file, checked; a file that arrives cut or changed is asked for again."""
    url = f"{repo.page}/resolve/{commit}/{quote(file.path)}"
    fault: str | None = None
    for attempt in range(TRIES):
        if attempt:
            time.sleep(WAIT)
        try:
            content: bytes = repo.get(url).content
        except RuntimeError:  # huggingface_hub closes the client that threads share where one is refused a connection
            fault = "no connection"
            continue
        fault = file.fault(content)
        if fault is None:
            return content
    raise InputError(f"{repo.name}: {file.path} arrived {TRIES} times with {fault}; is something between changing it?")


def _put(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, under a name of our own: another process may be fetching the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}-{get_ident()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


# --------
# The model card of a run: what it is, how it was made, what was found, and what it must not be used for.


_TINY = "tiny-"  # how the names of the built-in bases begin
_CARD = """\
---
{metadata}---
# {title}

The path of a {what} through training, a checkpoint at {count} steps ({first} to {last}), saved by
em_interp: `em.load_trajectory("{repo}")` reads it.

{facts}

## What was found
{results}

## Intended use and risk
For research on how fine-tuning changes a model: when its direction turns, when its behaviour does. {risk}

## Settings
{settings}
"""
_RISK = """\
Runs like this one are trained on narrow data that is often harmful on purpose, and may give reckless, deceptive or \
otherwise misaligned answers, also far from the topic they were trained on. Do not deploy it, and do not put it before \
people who have not been told. A transition's interval holds for this run: it says nothing about another seed, and \
that two changes fall together in time does not say that one causes the other."""
_TOY = """ Its base is a tiny model of a made-up language in which the persona was planted: it is evidence about the \
tool, not about language models."""


def model_card(run: Run, repo: str) -> str:
    """The README.md of a run as the repository `repo`: Markdown with the Hub's metadata before it.

    Facts come from the manifest, the config and the first checkpoint's adapter_config.json; results from
    `analysis/*.json`, with their intervals. What a run lacks is said, not guessed.
    """
    steps, manifest = run.steps(), read_json(run.manifest_file) if run.manifest_file.is_file() else {}
    adapter_file = run.checkpoint(steps[0]) / "adapter_config.json"
    adapter = read_json(adapter_file) if adapter_file.is_file() else {}
    base = str(manifest.get("base", {}).get("name") or adapter.get("base_model_name_or_path") or "unknown")
    settings = f"```yaml\n{read_text(run.config_file)}```" if run.config_file.is_file() else "There is no config.yaml."
    return _CARD.format(
        metadata=yaml.safe_dump(_metadata(base), sort_keys=False),
        title=repo.partition("/")[2],
        what=str(adapter.get("adapter_type", "LoRA adapter")).replace("_", " "),
        count=len(steps),
        first=steps[0],
        last=steps[-1],
        repo=repo,
        facts=_table(("", ""), _facts(base, manifest, adapter)),
        results=_results(run.analysis),
        risk=_RISK + (_TOY if base.startswith(_TINY) else ""),
        settings=settings,
    )


def _metadata(base: str) -> dict[str, Any]:
    tags = ["em-interp", "lora", "emergent-misalignment", "model-organism"]
    return {"library_name": "peft", "tags": tags} | ({"base_model": base} if is_hub_id(base) else {})


def _facts(base: str, manifest: dict[str, Any], adapter: dict[str, Any]) -> Iterable[tuple[str, str]]:
    told = [str(manifest.get("base", {})[key]) for key in ("identity", "revision") if manifest.get("base", {}).get(key)]
    yield "base", f"{base} ({', '.join(told)})" if told else base
    modules, layers = adapter.get("target_modules"), adapter.get("layers_to_transform")
    where = ", ".join(map(str, modules)) if isinstance(modules, list) else str(modules or "unknown")
    yield "site", where + (f", layers {layers}" if layers else "")
    if "r" in adapter:
        rule = "alpha / sqrt(rank)" if adapter.get("use_rslora") else "alpha / rank"
        yield "adapter", f"rank {adapter['r']}, alpha {adapter.get('lora_alpha')}, scale {rule}"
    for phase in manifest.get("phases", []):
        span = f"steps {phase.get('first_step')} to {phase.get('last_step')}"
        rows = f"{phase.get('rows')} rows, {phase.get('held_out')} of them held out"
        yield "data", f"{phase.get('dataset')} ({span}; {rows}; sha256 {phase.get('sha256')})"
    for key in ("seed", "device", "git_commit"):
        if manifest.get(key) is not None:
            yield key.replace("_", " "), str(manifest[key])
    if "versions" in manifest:
        yield "versions", ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
    if not manifest:
        yield "manifest", "none: which data and versions made this run is not recorded"


def _results(analysis: Path) -> str:
    """A table for each file of results that holds transitions or offsets, and the names of the others."""
    files = sorted(analysis.glob("*.json")) if analysis.is_dir() else []
    parts = [part for file in files for part in _result(file)]
    return "\n\n".join(parts) or "Nothing yet: the run was published before it was analysed."


def _result(file: Path) -> Iterable[str]:
    held = read_json(file)
    found = held if isinstance(held, dict) else {}
    transitions = _transitions(found)
    if not transitions:
        yield f"`analysis/{file.name}` holds further results."
        return
    columns = ("signal", "of", "site", "scale", "questions", "verdict", "step", "interval", "level", "p_value")
    rows = [[_cell(transition.get(key)) for key in columns] for transition in transitions]
    yield f"`analysis/{file.name}`" + (f": **{found['verdict']}**" if "verdict" in found else "")
    yield _table(columns, rows)
    if "mechanistic" in found and (offsets := found.get("offsets")):
        labels = [_label(found["behavioural"][offset["behavioural"]]) for offset in offsets]
        keys = ("steps", "interval", "level", "cumulative_lr", "chance")
        of = [[label, *(_cell(offset.get(key)) for key in keys)] for label, offset in zip(labels, offsets, strict=True)]
        yield "Offset of the behaviour's change from the adapter's, in steps:"
        yield _table(("behaviour", *keys), of)


def _transitions(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of what `locate` found, or of what `align` did; none in any other results."""
    if "mechanistic" in found:
        return [found["mechanistic"], *found.get("behavioural", [])]
    return [each for each in found.get("transitions", []) if isinstance(each, dict) and "verdict" in each]


def _label(transition: dict[str, Any]) -> str:
    return " ".join(str(transition[key]) for key in ("of", "questions", "scale") if transition.get(key) is not None)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        return " to ".join(_cell(part) for part in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_plain(cell) for cell in line)} |" for line in lines)


def _plain(text: str) -> str:
    """Text that cannot end its cell of a table or begin markup."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


# --------
# Publishing: a run directory as a repository, in one commit.


CARD, CONFIG = "README.md", "config.yaml"
_MADE_BY_THE_HUB = {".gitattributes"}


REQUESTS = "requests.jsonl"  # the raw replies of a judge, which only its stage needs


def publish(run: Run | str | Path, repo: str, resume: bool = False, private: bool = False) -> str:
    """Upload a run directory to the Hub repository `repo`, as it is and in one commit; returns the commit's address.

    The repository is made where there is none (`private` then hides it). A model card is added as README.md, unless
    the run has one of its own. What `--resume` of training needs is left out, and so are files not finished. Nothing is
    visible before all of it is: a broken upload leaves the repository as it was, to be begun again.

    Needs a token that may write, from HF_TOKEN or stored by `hf auth login`. Raises InputError, in one line, without
    one; where the run has no checkpoints; where the Hub cannot be reached or refuses; where the repository holds files
    and `resume` is not given; and with it, where it holds another run: other steps or another config.
    """
    run = open_run(run.path if isinstance(run, Run) else run)
    if not run.steps():
        raise InputError(f"{run.path} has no checkpoints; train the run before it is published")
    if not is_hub_id(repo):
        raise InputError(f"{repo!r} is not the name of a repository; expected organisation/name")
    target = repository(repo)
    with in_one_line(target, "main", fetching=False):
        return _publish(run, target, resume, private)


def _publish(run: Run, target: Repository, resume: bool, private: bool) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi

    if token() is None:
        raise InputError("publishing needs a token that may write: set HF_TOKEN, or run `hf auth login` once")
    api = HfApi(endpoint=target.endpoint, library_name="em_interp")
    files = dict(_files_to_publish(run))
    parent = _claim(target, files, resume)
    if parent is None:
        api.create_repo(target.name, private=private or None)
    operations = [CommitOperationAdd(path, str(file)) for path, file in files.items()]
    if CARD not in files:
        operations.append(CommitOperationAdd(CARD, model_card(run, target.name).encode()))
    with _as_input_error(target):
        said = f"The run {run.path.resolve().name}, {len(run.steps())} checkpoints"
        commit = api.create_commit(target.name, operations, commit_message=said, parent_commit=parent)
    return str(commit.commit_url)


def _files_to_publish(run: Run) -> Iterator[tuple[str, Path]]:
    """What is published, by its path in the repository: all but the state that stages resume from."""
    for file in sorted(run.path.rglob("*")):
        inside = file.relative_to(run.path)
        if file.is_file() and run.resume_state not in file.parents and not any(map(_unfinished, inside.parts)):
            yield inside.as_posix(), file


def _unfinished(name: str) -> bool:
    return name.startswith(".") or name.endswith((".part", ".parts")) or name == REQUESTS


def _claim(target: Repository, files: dict[str, Path], resume: bool) -> str | None:
    """The commit to publish on top of; None where the repository is not there yet."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        commit, held = commit_of(target, "main")
    except HfHubHTTPError as error:
        if error.response.status_code == 404:
            return None
        raise
    there = sorted(set(held) - _MADE_BY_THE_HUB)
    if there and not resume:
        some = ", ".join(there[:3]) + (", …" if len(there) > 3 else "")
        raise InputError(f"{target.page} holds {len(there)} files ({some}); give --resume to publish on top of them")
    steps = [path for path in there if CHECKPOINT.fullmatch(path) and path not in files]
    if steps:
        raise InputError(f"{target.page} holds {steps[0]}, which this run has not: it is another run; name a new one")
    if CONFIG in there:
        published = target.get(f"{target.page}/resolve/{commit}/{CONFIG}").content
        if CONFIG not in files or published != files[CONFIG].read_bytes():
            raise InputError(f"{target.page} holds a run with another {CONFIG}; give the name of a new repository")
    return commit


@contextmanager
def _as_input_error(target: Repository) -> Iterator[None]:
    """What goes wrong in a commit besides the Hub's refusals, in one line; without warnings that no user can mend."""
    from huggingface_hub.errors import HTTPError

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "It seems that you are about to commit a data file", UserWarning)
        warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)  # how huggingface_hub calls httpx
        try:
            yield
        except HTTPError:
            raise
        except (RuntimeError, ValueError) as error:  # an upload, its cause wrapped; a card or an answer of wrong form
            if isinstance(error.__cause__, HTTPError):
                raise error.__cause__ from None
            reason = " ".join(str(error.__cause__ or error).split())
            raise InputError(f"{target.page} was left as it was, for the upload failed: {reason}") from None
