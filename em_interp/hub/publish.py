"""Publishing: a run directory as a repository, in one commit."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from em_interp.errors import InputError
from em_interp.hub.access import Repository, in_one_line, repository, token
from em_interp.hub.card import model_card
from em_interp.hub.listing import commit_of
from em_interp.hub.names import CHECKPOINT, is_hub_id
from em_interp.runs import Run, open_run

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
    files = dict(_files(run))
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


def _files(run: Run) -> Iterator[tuple[str, Path]]:
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
