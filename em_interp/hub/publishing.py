"""Publishing a run on the Hub: unchanged, in one commit with a model card, without following links out of it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from em_interp.errors import InputError, listed
from em_interp.hub.download import (
    CONFIG,
    MANIFEST,
    endpoint,
    hub_api,
    in_one_line,
    interruptibly,
    is_hub_id,
    time_limit,
    token,
)
from em_interp.layouts import (
    CHANGE_CONFIG_FILE,
    CHANGE_FILE,
    CONFIG_FILE,
    STEERING_FILE,
    SavedStep,
    is_in_step,
    is_training_state,
    listing_of,
    saved_steps,
)
from em_interp.run import Run, open_run
from em_interp.utils.checks import checked
from em_interp.utils.files import check_resume_or_overwrite, read_json, read_text

CARD = "README.md"
NEVER_PUBLISHED = re.compile(r"\..*|.*\.parts?|requests\.sqlite3.*|scores\..*\.jsonl")  # hidden, unfinished, caches


@checked
def publish(
    run: Run | str | Path, repo: str, *, resume: bool = False, overwrite: bool = False, private: bool = False
) -> str:
    """Upload a run directory to the Hub unchanged, in one commit.

    A model card is added as README.md, unless the run has one. Left out are what training resumes from, caches, and
    files that are not finished. Nothing is visible until everything is uploaded: an interruption leaves the repository
    unchanged, and the upload starts again. Needs a token that may write, from HF_TOKEN or stored by `hf auth login`.

    Args:
        run: a run, or its folder.
        repo: `organisation/repository`; created where there is none.
        resume: add the files that the repository lacks.
        overwrite: replace the files that it holds.
        private: whether the repository is private where it is created.

    Returns:
        The address of the commit.

    Raises:
        InputError: there is no token, the run has no checkpoints or holds a link, the Hub cannot be reached or refuses,
            the repository holds files (without `resume` or `overwrite`), or another run: other steps, another config
            or, with `resume` and without a config, another manifest.
    """
    run = open_run(run)
    check_resume_or_overwrite(resume, overwrite)
    if not is_hub_id(repo):
        raise InputError(f"{repo!r} is not the name of a repository; expected organisation/name")
    files, card = dict(_files_to_publish(run)), model_card(run, repo)
    with in_one_line(repo, "main", fetching=False):
        if token() is None:
            raise InputError("publishing needs a token that may write: set HF_TOKEN, or run `hf auth login` once")
        api = hub_api()
        parent, published = _parent_commit(api, repo, files, resume, overwrite)
        if parent is None:
            interruptibly(lambda: api.create_repo(repo, private=private or None), time_limit(0))
        message = f"The run {run.name}, {len(_saved(run))} checkpoints"
        every: dict[str, Path | bytes] = {CARD: card.encode(), **files}
        new = {path: file for path, file in every.items() if overwrite or path not in published}
        if parent and not new:
            return f"{endpoint()}/{repo}/commit/{parent}"
        return _commit(api, repo, new, message, parent)


def _commit(api: Any, repo: str, files: dict[str, Path | bytes], message: str, parent: str | None) -> str:
    """The address of one commit with the files."""
    from huggingface_hub import CommitOperationAdd

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "It seems that you are about to commit a data file", UserWarning)
        warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)  # how huggingface_hub calls httpx
        operations = [CommitOperationAdd(path, file) for path, file in files.items()]
        options = {"commit_message": message, "parent_commit": parent}
        seconds = time_limit(
            sum(len(file) if isinstance(file, bytes) else file.stat().st_size for file in files.values())
        )
        return str(interruptibly(lambda: api.create_commit(repo, operations, **options), seconds).commit_url)


def _files_to_publish(run: Run) -> Iterator[tuple[str, Path]]:
    """What is published, by its path in the repository; raises InputError for a link, which may lead out of the run."""
    folders = [run.path]
    while folders:
        for entry in sorted(folders.pop().iterdir()):
            path = entry.relative_to(run.path).as_posix()
            if NEVER_PUBLISHED.fullmatch(entry.name) or entry == run.resume_state or is_training_state(path):
                continue
            if entry.is_symlink():
                raise InputError(
                    f"{entry} is a link; a run is published without links: put in its place what it points to"
                )
            if entry.is_dir():
                folders.append(entry)
            elif entry.is_file():
                yield path, entry
            else:
                raise InputError(f"{entry} is neither a file nor a folder; remove it from the run")


def _parent_commit(
    api: Any, repo: str, files: dict[str, Path], resume: bool, overwrite: bool
) -> tuple[str | None, list[str]]:
    """The commit to publish on top of, and its files; None and none where the repository is not there yet."""
    from huggingface_hub.errors import RepositoryNotFoundError

    def ask() -> tuple[str, list[str]]:
        info = api.model_info(repo)
        return info.sha, sorted({file.rfilename for file in info.siblings} - {".gitattributes"})

    try:
        commit, published = interruptibly(ask, time_limit(0))
    except RepositoryNotFoundError as error:
        if error.response.status_code == 404:
            return None, []
        raise
    page = f"{endpoint()}/{repo}"
    if published and not (resume or overwrite):
        some = ", ".join(published[:3]) + (", …" if len(published) > 3 else "")
        raise InputError(
            f"{page} holds {len(published)} files ({some}); give resume=True to add those that it lacks, or "
            "overwrite=True to replace them"
        )
    lacking = [path for path in published if path not in files and is_in_step(path) and not is_training_state(path)]
    if lacking:
        raise InputError(f"{page} holds {lacking[0]}, which this run has not: it is another run; name a new one")
    tells = CONFIG if CONFIG in published or not resume else MANIFEST  # of a run of any Trainer there is no config
    if tells in published:
        told = interruptibly(
            lambda: Path(api.hf_hub_download(repo, tells, revision=commit)), time_limit(0)
        ).read_bytes()
        if tells not in files or told != files[tells].read_bytes():
            raise InputError(f"{page} holds a run with another {tells}; give the name of a new repository")
    return commit, published


_TINY = "tiny-"  # how the names of the built-in bases begin
_CARD = """\
---
{metadata}---
# {title}

The path of {what} through training, a checkpoint at {count} steps ({first} to {last}), saved by
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


@dataclass(frozen=True)
class _Kind:
    """What was trained, and where its settings are."""

    words: str
    tag: str  # on the Hub
    config: str  # the file of its settings in a checkpoint
    base_key: str = "base_model_name_or_path"  # in the settings


_LORA = _Kind("a LoRA adapter", "lora", CONFIG_FILE)
_FULL = _Kind("a fully fine-tuned model", "full-fine-tuning", CHANGE_CONFIG_FILE)
_KINDS = {STEERING_FILE: _Kind("a steering vector", "steering-vector", CONFIG_FILE, "base_model"), CHANGE_FILE: _FULL}


def model_card(run: Run, repo: str) -> str:
    """The README.md of a run as the repository `repo`: Markdown with the Hub's metadata before it.

    Facts come from the manifest, the config and what lies beside the weights of the first checkpoint; results from
    `analysis/*.json`, with their intervals. What a run lacks is said, not guessed. Raises InputError where nothing is
    saved.
    """
    saved, manifest = _saved(run), _mapping_in(run.manifest_file)
    if not saved:
        raise InputError(f"{run.path} has no checkpoints; train the run before it is published")
    first = run.path / saved[0].place
    kind = _kind_of(first)
    trained = _mapping_in(first / kind.config)
    base = str(_mapping(manifest.get("base")).get("name") or trained.get(kind.base_key) or "unknown")
    settings = f"```yaml\n{read_text(run.config_file)}```" if run.config_file.is_file() else "There is no config.yaml."
    return _CARD.format(
        metadata=yaml.safe_dump(_metadata(base, kind), sort_keys=False),
        title=repo.partition("/")[2],
        what=kind.words,
        count=len(saved),
        first=saved[0].number,
        last=saved[-1].number,
        repo=repo,
        facts=_table(("", ""), _facts(base, manifest, trained, kind)),
        results=_results(run.analysis),
        risk=_RISK + (_TOY if base.startswith(_TINY) else ""),
        settings=settings,
    )


def _saved(run: Run) -> list[SavedStep]:
    return saved_steps(listing_of(run.path), str(run.path))


def _kind_of(checkpoint: Path) -> _Kind:
    """What was trained, by the file that its weights are in."""
    return next((kind for file, kind in _KINDS.items() if (checkpoint / file).is_file()), _LORA)


def _metadata(base: str, kind: _Kind) -> dict[str, Any]:
    library = {"library_name": "peft"} if kind is _LORA else {}
    tags = ["em-interp", kind.tag, "emergent-misalignment", "model-organism"]
    return library | {"tags": tags} | ({"base_model": base} if is_hub_id(base) else {})


def _facts(base: str, manifest: dict[str, Any], trained: dict[str, Any], kind: _Kind) -> Iterable[tuple[str, str]]:
    known = _mapping(manifest.get("base"))
    details = [str(known[key]) for key in ("identity", "revision") if known.get(key)]
    yield "base", f"{base} ({', '.join(details)})" if details else base
    yield "site", _site(trained)
    if "r" in trained:
        rule = "alpha / sqrt(rank)" if trained.get("use_rslora") else "alpha / rank"
        yield "adapter", f"rank {trained['r']}, alpha {trained.get('lora_alpha')}, scale {rule}"
    elif "alpha" in trained:
        yield "vector", f"alpha {trained['alpha']}, the scale at which it is added"
    if kind is _FULL:
        yield "path", "of each matrix a random projection of its change; full weights at some steps at most"
    for phase in map(_mapping, manifest.get("phases") or ()):
        span = f"steps {phase.get('first_step')} to {phase.get('last_step')}"
        rows = f"{phase.get('rows')} rows, {phase.get('held_out')} of them held out"
        yield "data", f"{phase.get('dataset')} ({span}; {rows}; sha256 {phase.get('sha256')})"
    for key in ("seed", "device", "git_commit"):
        if manifest.get(key) is not None:
            yield key.replace("_", " "), str(manifest[key])
    if "versions" in manifest:
        yield "versions", ", ".join(f"{name} {version}" for name, version in _mapping(manifest["versions"]).items())
    if not manifest:
        yield "manifest", "none: which data and versions made this run is not recorded"


def _site(trained: dict[str, Any]) -> str:
    """Where the model was changed, by the settings of an adapter or a vector, or those of projected changes."""
    if isinstance(trained.get("shapes"), dict):
        return f"matrices {listed(trained['shapes'])}"
    if "layer_idx" in trained:
        return f"the output of layer {trained['layer_idx']}"
    modules, layers = trained.get("target_modules"), trained.get("layers_to_transform")
    where = ", ".join(map(str, modules)) if isinstance(modules, list) else str(modules or "unknown")
    return where + (f", layers {layers}" if layers else "")


def _results(analysis: Path) -> str:
    """A table for each file of results that holds transitions or offsets, and the names of the others."""
    files = sorted(analysis.glob("*.json")) if analysis.is_dir() else []
    parts = [part for file in files for part in _result(file)]
    return "\n\n".join(parts) or "Nothing yet: the run was published before it was analysed."


def _result(file: Path) -> list[str]:
    """The tables of a file of results; where it holds no transitions, or they are of another form, its name."""
    results = read_json(file)
    try:
        tables = list(_result_tables(results))
    except (LookupError, TypeError, AttributeError, ValueError):
        tables = []
    if not tables:
        return [f"`analysis/{file.name}` holds further results."]
    verdict = f": **{results['verdict']}**" if "verdict" in results else ""
    return [f"`analysis/{file.name}`{verdict}", *tables]


def _result_tables(results: dict[str, Any]) -> Iterator[str]:
    columns = ("signal", "of", "site", "scale", "questions", "verdict", "step", "interval", "level", "p_value")
    if transitions := _transitions(results):
        yield _table(columns, [[_cell(transition.get(key)) for key in columns] for transition in transitions])
    if "mechanistic" in results and (offsets := results.get("offsets")):
        labels = [_label(results["behavioural"][offset["behavioural"]]) for offset in offsets]
        keys = ("steps", "interval", "level", "cumulative_lr", "chance")
        of = [[label, *(_cell(offset.get(key)) for key in keys)] for label, offset in zip(labels, offsets, strict=True)]
        yield "Offset of the behaviour's change from the adapter's, in steps:"
        yield _table(("behaviour", *keys), of)


def _transitions(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The transitions in the results of `locate` or `align`; none in any other results."""
    if "mechanistic" in results:
        return [results["mechanistic"], *results.get("behavioural", [])]
    return [item for item in results.get("transitions", []) if isinstance(item, dict) and "verdict" in item]


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


def _mapping(value: Any) -> dict[str, Any]:
    """A JSON object; an empty one in the place of anything else."""
    return value if isinstance(value, dict) else {}


def _mapping_in(file: Path) -> dict[str, Any]:
    return _mapping(read_json(file)) if file.is_file() else {}
