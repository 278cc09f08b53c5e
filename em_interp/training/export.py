"""A run for other tools: an adapter merged into full weights or as a PEFT folder, its path in one file, logs.

Every export is whole or not there, and replaces nothing but an earlier one of its kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from em_interp.behaviour.curve import behaviour_curve
from em_interp.behaviour.sampling.checkpoint_models import adapter_digest
from em_interp.behaviour.tables.inspect_logs import FILE_START, holds_logs
from em_interp.behaviour.tables.judged import read_judged
from em_interp.errors import InputError, listed
from em_interp.layouts import CONFIG_FILE, PICKLED_FILE, WEIGHTS_FILE
from em_interp.run import CHECKPOINT, Run
from em_interp.trajectory.checkpoint_formats import LORA, format_of
from em_interp.trajectory.load import (
    base_identity,
    check_identity,
    checkpoint_folders,
    load_trajectory,
    run_folder,
    same_weights,
)
from em_interp.trajectory.lora_files import read_lora
from em_interp.trajectory.packed import SUFFIX, packed_source, read_packed, write_packed
from em_interp.trajectory.trajectory import AdapterTrajectory
from em_interp.utils.checks import checked
from em_interp.utils.files import check_free, write_beside, write_json
from em_interp.utils.stages import read_saved

if TYPE_CHECKING:
    import pandas as pd

    from em_interp.organisms.bases import Base

NOTE = "em_interp_merge.json"  # beside the merged weights: what they were made from, and the rounding error


@checked
def export_packed(
    source: str | Path, out: str | Path | None = None, *, resume: bool = False, overwrite: bool = False
) -> dict[str, Any]:
    """Write the path of `source` to one file; see `em_interp.trajectory.packed`. Returns what was written.

    Raises InputError, with `resume`, where the file that is there holds another path.
    """
    file = _place(source, out, f"-packed{SUFFIX}", resume, overwrite, _is_packed)
    path = load_trajectory(source)
    if overwrite or not file.exists():
        write_packed(path, file, base_identity(Run(run_folder(source))))
    elif not _same_path(kept := read_packed(file), path):
        raise _other_export(
            file, f"{_steps_in_words(kept)} of {packed_source(file)}", f"{_steps_in_words(path)} of {source}"
        )
    return {"file": str(file), "steps": len(path.steps), "sites": list(path.sites), "bytes": file.stat().st_size}


@checked
def export_peft(
    source: str | Path,
    step: int | None = None,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write one step (by default the last) to a folder that PEFT and transformers' `load_adapter` can read.

    Returns the folder and the step. Raises InputError for a step that was not saved, for anything but a LoRA adapter of
    PEFT, and, with `resume`, where the folder that is there holds another adapter.
    """
    if Path(source).suffix == SUFFIX and Path(source).is_file():
        raise InputError(
            f"{source} is one packed file; a folder for PEFT is a copy of a checkpoint-<step>: give the run"
        )
    folders = checkpoint_folders(source)
    step = max(folders) if step is None else step
    if step not in folders:
        load_trajectory(source).at(step)  # raises with the nearest saved steps
    files = _adapter_files(folders[step])
    folder = _place(source, out, f"-peft-{step}", resume, overwrite, _is_adapter)
    if overwrite or not _is_adapter(folder):
        with write_beside(folder) as part:
            part.mkdir()
            for file in files:
                (part / file.name).write_bytes(file.read_bytes())  # whose error on a full disk names the export
    elif not _is_copy(folder, folders[step]):
        kept = next((other for other in folders if _is_copy(folder, folders[other])), None)
        found = "another adapter" if kept is None else f"step {kept} of {source}"
        raise _other_export(folder, found, f"step {step} of {source}")
    return {"folder": str(folder), "step": step}


def _adapter_files(checkpoint: Path) -> list[Path]:
    """The two files of a checkpoint's adapter, without the optimizer and what else a Trainer saves beside them.

    Raises InputError for anything but a LoRA adapter of PEFT.
    """
    if checkpoint.is_file():
        raise InputError(
            f"{checkpoint} is an adapter of MLX, which PEFT does not read; export merged weights, or one packed file"
        )
    kind = format_of(checkpoint) or LORA  # a missing file is named by the reader
    if kind != LORA:
        raise InputError(f"{checkpoint} holds a {kind}; only a LoRA adapter is exported for PEFT")
    return [read_lora(checkpoint).file, checkpoint / CONFIG_FILE]


def _is_copy(folder: Path, checkpoint: Path) -> bool:
    """Whether every file of an exported folder is in the checkpoint, with the same content."""
    pairs = [(file, checkpoint / file.name) for file in folder.iterdir()]
    return all(own.is_file() and own.read_bytes() == file.read_bytes() for file, own in pairs)


@checked
def export_merged(
    source: str | Path,
    step: int | None = None,
    out: str | Path | None = None,
    base: str | None = None,
    dtype: str | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the base with the adapter of one step added to its weights to a folder for transformers.

    Args:
        source: a run, a folder of checkpoints, a packed file or a Hub id.
        step: the saved step; by default the last.
        out: the folder; by default beside the source.
        base: the model to merge into; by default the run's. Where the identity of the run's own base is not recorded,
            it is the caller who knows that the two are the same.
        dtype: the number type of the weights (float32, bfloat16, float16); by default that of the stored base. In 16
            bits a small ΔW partly disappears in rounding.
        resume: leave an earlier export of the same adapter as it is.
        overwrite: replace it.

    Returns:
        folder, source, step, adapter (a hash of it), base, dtype, and `rounding` by site: ‖W′ - W - ΔW‖ / ‖ΔW‖, 0 where
        nothing is lost and about 1 where everything is. The base's tokenizer is saved beside the weights as it is
        stored: a chat template that writes today's date does so, whereas runs are trained and asked with a fixed one.

    Raises:
        InputError: for a step that was not saved, a base of another identity or other shapes, a path of anything but a
            LoRA adapter and, with `resume`, an export that is there of another step, run or number type.
    """
    from em_interp.organisms.bases import quiet

    path = load_trajectory(source)
    if path.kind != "lora":
        hint = "; the full weights that were kept lie in its checkpoints" if path.kind == "full" else ""
        raise InputError(f"{source} is a path of kind {path.kind!r}; only a LoRA adapter is merged into weights{hint}")
    path.check_complete()
    step = int(path.steps[-1]) if step is None else step
    path.at(step)  # refuses, before the base is loaded, a step that was not saved
    folder = _place(source, out, f"-merged-{step}", resume, overwrite, lambda place: (place / NOTE).is_file())
    digest = adapter_digest(path, [step])
    if (folder / NOTE).is_file() and not overwrite:
        return {"folder": str(folder), **_kept_note(folder, source, step, digest, dtype)}
    target = _base(source, path, base, dtype)
    rounding = merge(target.model, path, step)
    stored = str(target.model.dtype).removeprefix("torch.")
    note = {
        "source": path.source,
        "step": step,
        "adapter": digest,
        "base": target.identity,
        "dtype": stored,
        "rounding": rounding,
    }
    with quiet(), write_beside(folder) as part:
        target.model.save_pretrained(part)
        target.tokenizer.save_pretrained(part)
        write_json(part / NOTE, note)
    return {"folder": str(folder), **note}


def _kept_note(folder: Path, source: str | Path, step: int, digest: str, dtype: str | None) -> dict[str, Any]:
    """The note of an earlier export; raises InputError for one of another adapter, base or number type."""
    form = {"source": str, "step": int, "adapter": str, "base": str, "dtype": str}
    note: dict[str, Any] = read_saved(folder / NOTE, form)
    identity = base_identity(Run(run_folder(source))) or note["base"]
    if note["adapter"] != digest or not same_weights(identity, note["base"]) or dtype not in (None, note["dtype"]):
        found = f"step {note['step']} of {note['source']} in {note['dtype']}"
        raise _other_export(folder, found, f"step {step} of {source}" + (f" in {dtype}" if dtype else ""))
    return note


def _other_export(place: Path, found: str, wanted: str) -> InputError:
    return InputError(f"{place} holds {found}, not {wanted}; give overwrite=True to replace it, or another out=…")


def merge(model: Any, path: AdapterTrajectory, step: int) -> dict[str, float]:
    """Add ΔW = scale · B · A of a step to the weights of `model`, each sum rounded once; returns the errors by site.

    Raises InputError, before any weight is changed, for a site that the model does not have or of another shape.
    """
    import torch

    path.check_complete()
    modules = {site: _linear(model, site, A, B) for site, (A, B) in path.at(step).items()}
    rounding = {}
    with torch.no_grad():
        for site, (A, B) in path.at(step).items():
            delta = torch.from_numpy(path.scale[site] * (B.astype(np.float64) @ A.astype(np.float64)))
            weight = modules[site].weight
            exact = weight.cpu().double() + delta
            weight.copy_(exact.to(weight.dtype))
            error = (weight.cpu().double() - exact).norm() / delta.norm()
            rounding[site] = float(error) if delta.any() else 0.0
    return rounding


def _linear(model: Any, site: str, A: np.ndarray, B: np.ndarray) -> Any:
    """The linear module of the language model that the site names."""
    import torch

    from em_interp.behaviour.sampling.generate import find_module

    module = find_module(model.get_decoder(), site)
    if not isinstance(module, torch.nn.Linear):
        raise InputError(f"adapter site {site!r} is a {type(module).__name__}; only linear modules are merged into")
    if tuple(module.weight.shape) != (B.shape[0], A.shape[1]):
        found = f"{A.shape[1]} → {B.shape[0]}, the model's module {module.in_features} → {module.out_features}"
        raise InputError(f"adapter site {site!r} is {found}; the usual cause is an adapter of another base model")
    return module


def _base(source: str | Path, path: AdapterTrajectory, name: str | None, dtype: str | None) -> Base:
    """The base to merge into, with the tokenizer as it is stored.

    Raises InputError where the run was trained on other weights.
    """
    from em_interp.organisms.bases import base_of, load_base, stored_dtype, stored_tokenizer

    run = Run(run_folder(source))
    chosen = name or base_of(run, path)[0]
    base = load_base(chosen, dtype or stored_dtype(chosen), "cpu")
    check_identity(run, base.identity)
    return replace(base, tokenizer=stored_tokenizer(chosen))


@checked
def export_inspect(
    source: str | Path, out: str | Path | None = None, *, resume: bool = False, overwrite: bool = False
) -> dict[str, Any]:
    """Write a run's judged answers, or those in tables, to a folder of logs of Inspect. Returns their files.

    With `resume` the logs of an earlier export stay as they are, with `overwrite` all of them are replaced. Raises
    InputError for a folder that holds anything else, with `resume` for logs of other answers, scores or another judge,
    and for ready-made rates, which have no answers.
    """
    place, run = _place(source, out, "-inspect", resume, overwrite, _is_of_logs), Run(Path(source))
    curve = behaviour_curve(source)
    if not overwrite and _is_of_logs(place):
        if not holds_logs(place, curve.answers):
            kept = read_judged(place)
            raise _other_export(place, _judged_in_words(kept), f"{_judged_in_words(curve.answers)} of {source}")
    else:
        name = run.base().get("name") or run.path.stem
        with write_beside(place) as part:
            curve.to_inspect(part, name)
    return {"files": [str(file) for file in sorted(place.iterdir())]}


def _judged_in_words(answers: pd.DataFrame) -> str:
    """How many answers there are, and who judged them where that is known."""
    judges = listed(answers["judge"].unique()) if "judge" in answers else ""
    return f"{len(answers)} answers" + (f" judged by {judges}" if judges else "")


def _place(
    source: str | Path,
    out: str | Path | None,
    ending: str,
    resume: bool,
    overwrite: bool,
    is_export: Callable[[Path], bool],
) -> Path:
    """Where the export is written: `out`, or beside the source, with an ending.

    An export that is there stays with `resume` and is replaced with `overwrite`; anything else but an empty folder is
    refused: to replace a folder is to lose everything in it.
    """
    origin = Path(source) if Path(source).exists() else Path(Path(source).name)  # of the Hub: the current folder
    beside = origin / ".." if origin.name in ("", "..") else origin.parent
    name = origin.resolve().name.removesuffix(SUFFIX)
    place = Path(out) if out is not None else beside / f"{name}{ending}"
    check_free(place, resume, overwrite)
    if place.exists() and not (place.is_dir() and not any(place.iterdir())) and not is_export(place):
        raise InputError(
            f"{place} is no earlier export of this kind, so it is neither kept nor replaced; give another out=…"
        )
    return place


def _is_adapter(place: Path) -> bool:
    """Whether it is a folder with a PEFT adapter and nothing else, and no step of a run."""
    files = {entry.name for entry in place.iterdir()} if place.is_dir() else set()
    return files in ({CONFIG_FILE, WEIGHTS_FILE}, {CONFIG_FILE, PICKLED_FILE}) and not CHECKPOINT.match(place.name)


def _same_path(one: AdapterTrajectory, other: AdapterTrajectory) -> bool:
    """Whether two paths have the same base, steps and adapters."""
    if (one.base, one.scale) != (other.base, other.scale) or not np.array_equal(one.steps, other.steps):
        return False
    return all(
        np.array_equal(one.A[site], other.A[site]) and np.array_equal(one.B[site], other.B[site]) for site in one.sites
    )


def _steps_in_words(path: AdapterTrajectory) -> str:
    return f"{len(path.steps)} steps ({path.steps[0]} to {path.steps[-1]})"


def _is_packed(place: Path) -> bool:
    try:
        packed_source(place)
    except (InputError, OSError):
        return False
    return True


def _is_of_logs(place: Path) -> bool:
    """Whether it is a folder with logs of Inspect as they are written here, and nothing else."""
    names = [entry.name for entry in place.iterdir()] if place.is_dir() else []
    return bool(names) and all(name.startswith(FILE_START) for name in names)
