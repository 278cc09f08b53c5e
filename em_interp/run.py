"""A run directory: where everything of one run is, and copies of it for stages that write to another folder."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from filecmp import cmp
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_interp.errors import InputError
from em_interp.layouts import CHANGE_FILE, READ_FILES, STEP_FILES, is_in_step, is_step
from em_interp.utils.checks import checked
from em_interp.utils.files import (
    check_free,
    check_replaceable,
    read_bytes,
    refuse_links,
    remove,
    resumable,
    write_beside,
    write_text,
)
from em_interp.utils.lock import write_lock
from em_interp.utils.stages import read_saved

if TYPE_CHECKING:
    from em_interp.config.run_config import RunConfig

PHASE = {"dataset?": str, "domain?": str, "first_step?": int, "last_step?": int}
MANIFEST = {
    "base?": {"name?": str, "identity?": str, "revision?": str},
    "phases?": [PHASE],
    "counts?": dict,
    "versions?": dict,
}
OUTSIDE_SETS = ("out_of_domain", "broad", "all")  # question sets outside the training domain; `all` where none is named
CHECKPOINT = re.compile(r"checkpoint-([0-9]{1,16})$")


def trained_scale(scales: Iterable[float]) -> float:
    """Of several scales of an adapter the one nearest to 1, that of the adapter as trained."""
    return min(scales, key=lambda scale: abs(scale - 1.0), default=1.0)


@dataclass(frozen=True)
class Run:
    """A run directory. Its properties are paths of files and folders, which exist once a stage has written them."""

    path: Path

    @property
    def name(self) -> str:
        """The name of its folder, also where that is the one that one is in."""
        return self.path.resolve().name

    @property
    def config_file(self) -> Path:
        """The resolved config, from which the run can be repeated."""
        return self.path / "config.yaml"

    @property
    def manifest_file(self) -> Path:
        """Versions, base, data hash, seed, device, commit."""
        return self.path / "manifest.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of `checkpoint-<step>` folders, each a PEFT adapter."""
        return self.path / "checkpoints"

    @property
    def trainer_state_file(self) -> Path:
        """The trainer's log, one row a step."""
        return self.path / "trainer_state.json"

    @property
    def resume_state(self) -> Path:
        """What `--resume` needs besides the adapters: optimizer and random state."""
        return self.path / "resume"

    @property
    def answers_file(self) -> Path:
        """One row an answer."""
        return self.path / "behaviour" / "answers.parquet"

    @property
    def scores_file(self) -> Path:
        """One row an answer and judge."""
        return self.path / "behaviour" / "scores.parquet"

    @property
    def preferences_file(self) -> Path:
        """One row a step, adapter scale and pair of answers: their log-likelihoods."""
        return self.path / "behaviour" / "preferences.parquet"

    @property
    def analysis(self) -> Path:
        """Folder of what locate, align, mechanism and compare found."""
        return self.path / "analysis"

    @property
    def figures(self) -> Path:
        """Folder of exported figures."""
        return self.path / "figures"

    @property
    def report_file(self) -> Path:
        """The self-contained page."""
        return self.path / "report.html"

    def checkpoint(self, step: int) -> Path:
        """The folder of one saved step, whether or not it exists."""
        return self.checkpoints / f"checkpoint-{step}"

    def steps(self) -> list[int]:
        """Saved steps, increasing; empty when nothing is saved."""
        if not self.checkpoints.is_dir():
            return []
        matches = (CHECKPOINT.match(entry.name) for entry in self.checkpoints.iterdir())
        return sorted(int(match.group(1)) for match in matches if match)

    def is_begun(self) -> bool:
        """Whether there is a run: a config or a checkpoint."""
        return self.config_file.exists() or bool(self.steps())

    def contents(self) -> list[Path]:
        """Every place of the run, whether or not it exists; last those by which `is_begun` tells that there is one."""
        files = [self.report_file, self.trainer_state_file, self.manifest_file]
        folders = [self.figures, self.analysis, self.answers_file.parent, self.resume_state]
        return [*files, *folders, self.checkpoints, self.config_file]

    def check_replaceable(self) -> None:
        """Raise InputError where one of its places holds what no run writes, such as other runs in `checkpoints`."""
        check_replaceable(self.contents(), self.is_begun(), "a run")
        entries = sorted(self.checkpoints.iterdir()) if self.checkpoints.is_dir() else []
        check_replaceable((entry for entry in entries if not CHECKPOINT.match(entry.name)), False, "a run")

    def config(self) -> RunConfig:
        """The resolved config; raises InputError where the run has none."""
        from em_interp.config.run_config import load_config

        return load_config(self.config_file)

    def manifest(self) -> dict[str, Any]:
        """The manifest; raises InputError where the run has none, or one of another form."""
        manifest: dict[str, Any] = read_saved(self.manifest_file, MANIFEST)
        return manifest

    def phases(self) -> list[dict[str, Any]]:
        """The phases of training, as the manifest has them; where it has none, one phase without entries."""
        return (self.manifest() if self.manifest_file.exists() else {}).get("phases") or [{}]

    def base(self) -> dict[str, Any]:
        """Name, identity and revision of the base, as far as the manifest has them."""
        return (self.manifest() if self.manifest_file.exists() else {}).get("base") or {}


RunLike = Run | str | Path


@checked
def open_run(path: RunLike) -> Run:
    """The run in a folder.

    Args:
        path: a folder with checkpoints or with the `config.yaml` of a run; a Run is returned as it is.

    Returns:
        The run; nothing of it is loaded yet.

    Raises:
        InputError: where there is no folder with checkpoints or a config.
    """
    if isinstance(path, Run):
        return path
    run = Run(Path(path))
    if not run.path.is_dir():
        raise InputError(f"{path} is not a run directory: there is no such folder")
    if not run.checkpoints.is_dir() and not run.config_file.is_file():
        raise InputError(f"{path} is not a run directory: expected checkpoints/ or config.yaml in it, found neither")
    return run


def check_other(source: object, control: object) -> None:
    """Raise InputError for a run that is its own control: by that alone nothing in it could stand out."""
    places = [given.path if isinstance(given, Run) else given for given in (source, control)]
    if all(isinstance(place, (str, Path)) for place in places) and len({Path(str(p)).resolve() for p in places}) == 1:
        raise InputError(f"the control {places[1]} is what it is to be compared with; expected another run")


def claim_run(path: str | Path, config: RunConfig, resume: bool = False, overwrite: bool = False) -> Run:
    """The directory for a run of `config`; nothing is written or removed.

    Raises InputError where the folder holds a run and neither `resume` nor `overwrite` is given, with `resume` where it
    was made from another config, and with `overwrite` where its places hold something that no run writes.
    """
    run = Run(Path(path))
    begun = run.is_begun()
    check_free(run.path if begun else run.config_file, resume, overwrite, "a run")
    if begun and resume:
        if not run.config_file.exists():
            raise InputError(f"{path} has checkpoints but no config.yaml, so it cannot be resumed")
        if run.config() != config:  # a key that is newer than the run has its default
            raise InputError(
                f"{run.config_file} differs from the config given, so the run cannot be resumed with it; give "
                "overwrite=True to replace the run or another out=…"
            )
    if overwrite:
        run.check_replaceable()
    return run


def create_run(path: str | Path, config: RunConfig, resume: bool = False, overwrite: bool = False) -> Run:
    """Make the directory of a new run with its `config.yaml`, or enter one as `claim_run` does.

    With `overwrite` everything that was made of an earlier run is removed; files of other names stay.
    """
    from em_interp.config.settings import to_yaml

    run = claim_run(path, config, resume, overwrite)
    if overwrite:
        remove(*run.contents())
    if not run.config_file.exists():
        write_text(run.config_file, to_yaml(config))
    return run


NEVER_COPIED = (".*", "resume")  # what is being written, and what training overwrites in place


def copy_run(run: Run, out: str | Path | None, without: tuple[str, ...] = ()) -> Run:
    """A copy of the run in `out`, to which a stage writes so that the run itself is left alone; without `out` the run.

    Of a step's folder only what is read is copied, not the optimizer and the tokenizer that a Trainer saves beside it.
    Adapters are hard links where possible; links out of the run are not followed, but for those to checkpoints.
    `without` are names and patterns of files and folders that are not copied: what the stage is about to make. Raises
    InputError where `out` holds another run, lies inside the run, or cannot be written.
    """
    if out is None or Path(out).resolve() == run.path.resolve():
        return run
    copy = Run(Path(out))
    if run.path.resolve() in copy.path.resolve().parents:
        raise InputError(f"{out} lies inside the run {run.path}; give another out=…")
    if copy.config_file.exists() or copy.steps():
        for own, copied in ((run.config_file, copy.config_file), (run.manifest_file, copy.manifest_file)):
            if _content(own) != _content(copied):
                raise InputError(f"{out} holds another run than {run.path}: its {own.name} differs; give another out=…")
    with write_lock(copy.path), resumable(copy.path):
        files = {file: copy.path / file.relative_to(run.path) for file in _files(run.path, (*without, *NEVER_COPIED))}
        for file, target in files.items():
            if file.name in STEP_FILES and target.exists() and not cmp(file, target):
                raise InputError(f"{target} is not that of {run.path}, so {out} holds another run; give another out=…")
        for file, target in files.items():
            _copy(file, target)
    return copy


def _content(file: Path) -> bytes | None:
    return read_bytes(file) if file.exists() else None


def _files(root: Path, without: tuple[str, ...]) -> Iterator[Path]:
    """The regular files of a run that are read; links are followed as `_is_followed` says."""
    inside = [root.resolve(), *([(root.parent.parent / "blobs").resolve()] if root.parent.name == "snapshots" else [])]
    folders = [root]
    while folders:
        for entry in sorted(folders.pop().iterdir()):
            if any(fnmatch(entry.name, pattern) for pattern in without) or not _is_followed(entry, root, inside):
                continue
            if entry.is_dir():
                folders.append(entry)
            elif entry.is_file() and _is_read(entry, root):
                yield entry


def _is_read(file: Path, root: Path) -> bool:
    """Whether a file of a run is read by any stage: all but what lies beside the adapter of a step."""
    of_full_weights = (file.parent / CHANGE_FILE).exists()
    return file.name in READ_FILES or of_full_weights or not is_in_step(file.relative_to(root).as_posix())


def _is_followed(entry: Path, root: Path, inside: list[Path]) -> bool:
    """Whether an entry of a run is no link, or one to a checkpoint or to a target inside the run or its Hub cache.

    A link of another kind may lead anywhere, or round in a circle.
    """
    if not entry.is_symlink():
        return True
    if entry.is_dir():
        checkpoints = root / "checkpoints"
        return entry == checkpoints or (entry.parent in (root, checkpoints) and is_step(entry.name))
    return any(place in entry.resolve().parents for place in inside)


def _copy(source: Path, target: Path) -> None:
    if target.exists():
        return
    refuse_links(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".safetensors":  # may be gigabytes in all, and nobody edits them
        try:
            target.hardlink_to(source.resolve())
            return
        except OSError:  # another disk, or one without links
            pass
    with write_beside(target) as part:
        shutil.copy2(source, part)
