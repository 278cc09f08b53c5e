"""Where the saved steps of a run are: the names that libraries give to folders and files of checkpoints.

A layout is one row of LAYOUTS: its name in messages, a pattern that the name of a step's folder (or file) matches as a
whole, and whether its number counts steps or epochs. Another layout is added as another row, with its line in
docs/layouts.md and a case in tests/test_layouts.py.

The same rule finds the steps in a folder on this machine and in the listing of a repository on the Hub.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from em_interp.errors import InputError, listed

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
PICKLED_FILE = "adapter_model.bin"  # what PEFT wrote before safetensors
STEERING_FILE = "steering_vector.pt"
CHANGE_FILE, CHANGE_CONFIG_FILE = "weight_change.safetensors", "weight_change.json"
LOG_FILE = "trainer_state.json"
STEP_FILES = (WEIGHTS_FILE, PICKLED_FILE, STEERING_FILE, CHANGE_FILE)  # one of them in the folder of each step
READ_FILES = (CONFIG_FILE, *STEP_FILES, CHANGE_CONFIG_FILE, LOG_FILE)  # what else lies there is for other programs
TRAINING_STATE = (  # names, in the folder of a step, of what training alone resumes from
    *("optimizer*", "scheduler*", "scaler*", "rng_state*", "training_args.bin"),  # transformers
    *("pytorch_model_fsdp*", "sampler*", "random_states*", "dl_state_dict*", "custom_checkpoint_*"),  # FSDP, accelerate
    *("global_step*", "zero_*", "bf16_zero_*", "mp_rank_*", "latest"),  # DeepSpeed
)
MAX_STEP = 2**53  # beyond it neighbouring steps are one number in float64
FOLDERS_BELOW = 2  # how deep the steps are looked for where the folder given has none, as in runs/<run>/step_10

Listing = Callable[[str], Sequence[str]]  # the names in a folder, by its path from the root; none where it is none


@dataclass(frozen=True)
class Layout:
    """How one library names its checkpoints."""

    name: str
    pattern: re.Pattern[str]
    counts: Literal["steps", "epochs"] = "steps"  # with epochs, the step is read from the checkpoint's trainer_state


LAYOUTS = (
    Layout("checkpoint-<step>", re.compile(r"[Cc]heckpoint[-_](?:step[-_])?([0-9]+)")),  # transformers, em_interp
    Layout("step_<step>", re.compile(r"(?:global[-_]?)?(?:step|iter)[-_]?([0-9]+)")),  # DeepSpeed, accelerate
    Layout("epoch_<epoch>", re.compile(r"(?:checkpoint[-_])?epoch[-_]?([0-9]+)"), "epochs"),  # accelerate
    Layout("<step>_adapters.safetensors", re.compile(r"([0-9]+)_adapters\.safetensors")),  # MLX: a file a step
)


@dataclass(frozen=True)
class SavedStep:
    """One checkpoint of a listing."""

    layout: Layout
    number: int  # of the step, or of the epoch
    path: str  # of its folder or file, from the root
    place: str = ""  # where its adapter is: the path, or a folder in it

    @property
    def name(self) -> str:
        """The name that has the number."""
        return self.path.rpartition("/")[2]


def is_step(name: str) -> bool:
    """Whether a folder or file of this name is that of a step."""
    return any(layout.pattern.fullmatch(name) for layout in LAYOUTS)


def is_in_step(path: str) -> bool:
    """Whether a path, from the root of a run, is that of something in the folder of a step."""
    return any(map(is_step, path.split("/")[:-1]))


def is_training_state(path: str) -> bool:
    """Whether training alone reads what has this path, from the root of a run, to resume."""
    return is_in_step(path) and any(fnmatch(path.rpartition("/")[2], pattern) for pattern in TRAINING_STATE)


def listing_of(root: Path) -> Listing:
    """The listing of a folder on this machine."""

    def names(path: str) -> list[str]:
        folder = os.path.join(root, path)
        return sorted(os.listdir(folder)) if os.path.isdir(folder) else []

    return names


def listing_of_paths(paths: Iterable[str]) -> Listing:
    """The listing of files by their paths, as of a repository."""
    folders: dict[str, dict[str, None]] = {}
    for path in paths:
        parts = path.split("/")
        for depth, name in enumerate(parts):
            folders.setdefault("/".join(parts[:depth]), {})[name] = None
    return lambda folder: list(folders.get(folder, ()))


def saved_steps(names: Listing, root: str, adapter: str | None = None) -> list[SavedStep]:
    """The checkpoints of one run, by number.

    They lie in the root, in its `checkpoints`, or in the one folder below that has any. A checkpoint is a folder with
    one of STEP_FILES in it or in a folder of it that is named after the adapter.

    Args:
        names: The listing.
        root: What errors call the root.
        adapter: The adapter to read where a step has several.

    Raises:
        InputError: For steps in several places or layouts, a step that is there twice, or several adapters.
    """
    own = [steps for folder in ("", "checkpoints") if (steps := _steps_in(names, folder))]
    if len(own) > 1:
        raise InputError(f"{root} has {own[0][0].layout.name} both in itself and in its checkpoints/; expected one set")
    steps = own[0] if own else _steps_below(names, root)
    _check_layouts(steps, root)
    return [replace(step, place=_adapter_folder(names, step.path, root, adapter)) for step in steps]


def _steps_in(names: Listing, folder: str) -> list[SavedStep]:
    """The checkpoints that lie in a folder, by number."""
    steps = []
    for name in names(folder):
        for layout in LAYOUTS:
            if match := layout.pattern.fullmatch(name):
                steps.append(SavedStep(layout, int(match[1][:20]), f"{folder}/{name}".lstrip("/")))
                break
    return sorted(steps, key=lambda step: step.number)


def _steps_below(names: Listing, root: str) -> list[SavedStep]:
    """The checkpoints of the one folder below the root that has any; none where there is no such folder."""
    folders, by_folder = [""], dict[str, list[SavedStep]]()
    for _ in range(FOLDERS_BELOW):
        folders = [f"{up}/{name}".lstrip("/") for up in folders for name in names(up) if not name.startswith(".")]
        by_folder |= {folder: steps for folder in folders if len(steps := _steps_in(names, folder)) > 1}
    if len(by_folder) > 1:
        runs = listed(f"{folder} ({len(steps)} steps)" for folder, steps in by_folder.items())
        raise InputError(f"{root} holds several runs: {runs}; give one of these folders")
    return next(iter(by_folder.values()), [])


def _check_layouts(steps: list[SavedStep], root: str) -> None:
    by_layout: dict[str, list[SavedStep]] = {}
    for step in steps:
        by_layout.setdefault(step.layout.name, []).append(step)
    if len(by_layout) > 1:
        groups = listed(f"{name} ({len(steps)})" for name, steps in by_layout.items())
        raise InputError(f"{root} mixes checkpoints of several layouts: {groups}; give a folder with those of one run")
    for step, after in itertools.pairwise(steps):
        if step.number == after.number:
            raise InputError(f"{root}: {step.path} and {after.path} are the same step")
    if steps and steps[-1].number > MAX_STEP:
        raise InputError(f"{root}: {steps[-1].path[:80]} has a step beyond 2**53, where steps cannot be told apart")


def _adapter_folder(names: Listing, folder: str, root: str, adapter: str | None) -> str:
    """The folder with the adapter of a step: its own, or the one inside that is named after the adapter."""
    inside = names(folder)
    if adapter is None and set(inside) & set(STEP_FILES):
        return folder
    named = [name for name in inside if set(names(f"{folder}/{name}")) & set(STEP_FILES)]
    if adapter in named:
        return f"{folder}/{adapter}"
    if adapter is None and len(named) > 1:
        raise InputError(f"{root}: {folder} holds several adapters: {listed(named)}; choose one with adapter=…")
    return f"{folder}/{named[0]}" if adapter is None and named else folder
