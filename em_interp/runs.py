"""A run directory: where everything of one run lies, and how files in it are written.

Nothing is ever half there: files and folders are written beside their place and renamed, so that existence means
completeness and a crash costs at most the item in flight.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_interp.errors import InputError

if TYPE_CHECKING:
    from em_interp.config import RunConfig

CHECKPOINT = re.compile(r"checkpoint-(\d+)$")


@contextmanager
def write_beside(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, for a file or a folder; renamed to `path` when the block ends without error.

    On an error whatever was written is removed and `path` is left as it was. An existing folder is replaced.
    """
    path = Path(path)
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    _remove(part)
    try:
        yield part
        if path.is_dir() and part.is_dir():
            _remove(path)
        part.replace(path)
    except BaseException:
        _remove(part)
        raise


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except FileNotFoundError:
        pass
    except OSError:  # a folder
        if path.is_dir():
            shutil.rmtree(path)


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """For a stage that writes to `folder`: a full or read-only disk as an InputError, Ctrl-C with how to go on."""
    try:
        yield
    except OSError as error:
        kept = "what is there is kept, --resume goes on"
        raise InputError(f"{folder} cannot be written: {error.strerror or error}; {kept}") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; nothing is lost, --resume goes on in {folder}") from None


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with write_beside(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON to `path`, whole or not at all; see `to_json` for numbers that are not finite."""
    write_text(path, to_json(value) + "\n")


def to_json(value: Any, indent: int | None = 2) -> str:
    """`value` as strict JSON: NaN and infinities become null, numpy numbers and arrays become plain ones."""
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value


def read_text(path: Path) -> str:
    """The text in `path`; raises InputError naming the file when it is missing, cannot be read, or is not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; a file was expected") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None


def read_json(path: Path) -> Any:
    """The JSON value in `path`; raises InputError naming the file when it is missing or not JSON."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # JSONDecodeError; numbers and nesting beyond Python's limits
        raise InputError(f"{path} is not valid JSON ({error}); it may be truncated") from None


@dataclass(frozen=True)
class Run:
    """One run on disk. Every property is a place; what has not been made yet does not exist there."""

    path: Path

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
        found = (CHECKPOINT.match(entry.name) for entry in self.checkpoints.iterdir())
        return sorted(int(match.group(1)) for match in found if match)

    def config(self) -> RunConfig:
        """The resolved config; raises InputError where the run has none."""
        from em_interp.config import load_config

        return load_config(self.config_file)

    def manifest(self) -> dict[str, Any]:
        """The manifest; raises InputError where the run has none."""
        return read_json(self.manifest_file)


def open_run(path: str | Path) -> Run:
    """The run at `path`. Raises InputError where there is no folder with checkpoints or a config."""
    run = Run(Path(path))
    if not run.path.is_dir():
        raise InputError(f"{path} is not a run directory: there is no such folder")
    if not run.checkpoints.is_dir() and not run.config_file.is_file():
        raise InputError(f"{path} is not a run directory: expected checkpoints/ or config.yaml in it, found neither")
    return run


def claim_run(path: str | Path, config: RunConfig, resume: bool = False) -> Run:
    """The directory for a run of `config`: a free one or, with `resume`, one made from the same config.

    Nothing is written. Raises InputError where the folder holds a run already (without `resume`) or another config.
    """
    run = Run(Path(path))
    if run.config_file.exists() or run.steps():
        if not resume:
            raise InputError(f"{path} holds a run already; give --resume to continue it or another --out")
        if not run.config_file.exists():
            raise InputError(f"{path} has checkpoints but no config.yaml, so it cannot be resumed")
        if run.config() != config:  # a key that is newer than the run has its default
            raise InputError(f"{run.config_file} differs from the config given, so the run cannot be resumed with it")
    return run


def create_run(path: str | Path, config: RunConfig, resume: bool = False) -> Run:
    """Make the directory of a new run with its `config.yaml`, or enter one as `claim_run` does."""
    from em_interp.config import dump_config

    run = claim_run(path, config, resume)
    if not run.config_file.exists():
        write_text(run.config_file, dump_config(config))
    return run
