"""An adapter as others can load it: merged into full weights, as a PEFT folder, or the whole path in one file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from em_interp.errors import InputError
from em_interp.files import write_beside, write_json
from em_interp.run import CHECKPOINT, Run
from em_interp.trajectory.checkpoint_formats import CONFIG_FILE, WEIGHTS_FILE, read_lora
from em_interp.trajectory.load import LORA, checkpoint_folders, format_of, load_trajectory
from em_interp.trajectory.packed import SUFFIX, packed_identity, write_packed
from em_interp.trajectory.trajectory import AdapterTrajectory

if TYPE_CHECKING:
    from em_interp.organisms.bases import Base

NOTE = "em_interp_merge.json"  # beside the merged weights: of what they were made, and how well


def export_packed(source: str | Path, out: str | Path | None = None, resume: bool = False) -> dict[str, Any]:
    """The path of `source` as one file; see `em_interp.trajectory.packed`."""
    path = load_trajectory(source)
    file = _place(source, out, f"-packed{SUFFIX}", resume, _is_packed)
    write_packed(path, file, identity_of(source))
    return {"file": str(file), "steps": len(path.steps), "sites": list(path.sites), "bytes": file.stat().st_size}


def export_peft(
    source: str | Path, step: int | None = None, out: str | Path | None = None, resume: bool = False
) -> dict[str, Any]:
    """One step (by default the last) as a folder of its own that PEFT and transformers' `load_adapter` read.

    Raises InputError for a step that was not saved and for what is no LoRA adapter.
    """
    if Path(source).suffix == SUFFIX and Path(source).is_file():
        raise InputError(
            f"{source} is one packed file; a folder for PEFT is a copy of a checkpoint-<step>: give the run"
        )
    folders = checkpoint_folders(source)
    step = max(folders) if step is None else step
    if step not in folders:
        load_trajectory(source).at(step)  # says what the nearest saved steps are
    kind = format_of(folders[step]) or LORA  # what is missing the reader says
    if kind != LORA:
        raise InputError(f"{folders[step]} holds a {kind}; only a LoRA adapter is exported for PEFT")
    read_lora(folders[step])
    folder = _place(source, out, f"-peft-{step}", resume, _is_adapter)
    with write_beside(folder) as part:
        shutil.copytree(folders[step], part)
    return {"folder": str(folder), "step": step}


def export_merged(
    source: str | Path,
    step: int | None = None,
    out: str | Path | None = None,
    base: str | None = None,
    dtype: str | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """The base with the adapter of one step (by default the last) in its weights, as a folder for transformers.

    Weights keep the number type in which the base is stored, or have `dtype` (float32, bfloat16, float16). In 16 bits a
    small ΔW partly disappears in rounding: `rounding` in what is returned, by site, is ‖W′ - W - ΔW‖ / ‖ΔW‖, 0 where
    nothing is lost and about 1 where everything is. The tokenizer is saved beside. `base` is by default the run's.

    Raises InputError for a step that was not saved, for a base of another identity or other shapes, and for a path that
    is no LoRA adapter's.
    """
    from em_interp.organisms.bases import quiet

    path = load_trajectory(source)
    if path.kind != "lora":
        hint = "; the full weights that were kept lie in its checkpoints" if path.kind == "full" else ""
        raise InputError(f"{source} is a path of kind {path.kind!r}; only a LoRA adapter is merged into weights{hint}")
    step = int(path.steps[-1]) if step is None else step
    path.at(step)  # refuses, before the base is loaded, a step that was not saved
    folder = _place(source, out, f"-merged-{step}", resume, lambda place: (place / NOTE).is_file())
    onto = _base(source, path, base, dtype)
    rounding = merge(onto.model, path, step)
    stored = str(onto.model.dtype).removeprefix("torch.")
    said = {"source": path.source, "step": step, "base": onto.identity, "dtype": stored, "rounding": rounding}
    with quiet(), write_beside(folder) as part:
        onto.model.save_pretrained(part)
        onto.tokenizer.save_pretrained(part)
        write_json(part / NOTE, said)
    return {"folder": str(folder), **said}


def merge(model: Any, path: AdapterTrajectory, step: int) -> dict[str, float]:
    """Add ΔW = scale · B · A of a step to the weights of `model`, each sum rounded once; the rounding error by site.

    Raises InputError, before any weight is changed, for a site that the model does not have or of another shape.
    """
    import torch

    modules = {site: _linear(model, site, A, B) for site, (A, B) in path.at(step).items()}
    rounding = {}
    with torch.no_grad():
        for site, (A, B) in path.at(step).items():
            delta = torch.from_numpy(path.scale[site] * (B.astype(np.float64) @ A.astype(np.float64)))
            weight = modules[site].weight
            whole = weight.cpu().double() + delta
            weight.copy_(whole.to(weight.dtype))
            lost = (weight.cpu().double() - whole).norm() / delta.norm()
            rounding[site] = float(lost) if delta.any() else 0.0
    return rounding


def _linear(model: Any, site: str, A: np.ndarray, B: np.ndarray) -> Any:
    """The linear module of the language model that the site names."""
    import torch

    from em_interp.behaviour.generate import find_module

    module = find_module(model.get_decoder(), site)
    if not isinstance(module, torch.nn.Linear):
        raise InputError(f"adapter site {site!r} is a {type(module).__name__}; only linear modules are merged into")
    if tuple(module.weight.shape) != (B.shape[0], A.shape[1]):
        found = f"{A.shape[1]} → {B.shape[0]}, the model's module {module.in_features} → {module.out_features}"
        raise InputError(f"adapter site {site!r} is {found}; the usual cause is an adapter of another base model")
    return module


def _base(source: str | Path, path: AdapterTrajectory, name: str | None, dtype: str | None) -> Base:
    """The base to merge into, of the identity that the run was trained on where that is known."""
    from em_interp.organisms.bases import load_base, stored_dtype

    run = Run(Path(source))
    named = name or (run.config().model if run.config_file.exists() else path.base)
    if named is None:
        raise InputError(f"{source} does not say on which base it was trained; give --base")
    base = load_base(named, dtype or stored_dtype(named), "cpu")
    expected = identity_of(source)
    if expected is not None and expected.rpartition("@")[2] != base.identity.rpartition("@")[2]:
        raise InputError(f"the adapters of {source} were trained on {expected}; the base given is {base.identity}")
    return base


def identity_of(source: str | Path) -> str | None:
    """The name and the hash of the base that a run, or a packed file, was trained on; None where it is not recorded."""
    if Path(source).suffix == SUFFIX:
        return packed_identity(source)
    run = Run(Path(source))
    return (run.manifest().get("base") or {}).get("identity") if run.manifest_file.exists() else None


def _place(
    source: str | Path, out: str | Path | None, ending: str, resume: bool, exported: Callable[[Path], bool]
) -> Path:
    """Where it goes: `out`, or beside the source, with an ending.

    What is there is replaced only with `resume`, and only where it is empty or was `exported` before: to replace a
    folder is to lose everything in it.
    """
    here = Path(source) if Path(source).exists() else Path(Path(source).name)  # of the Hub: the current folder
    name = here.resolve().name.removesuffix(SUFFIX)
    place = Path(out) if out is not None else here.parent / f"{name}{ending}"
    if place.exists() and not resume:
        raise InputError(f"{place} is there already; give --resume to replace it or another --out")
    if place.exists() and not (place.is_dir() and not any(place.iterdir())) and not exported(place):
        raise InputError(
            f"{place} is no earlier export of this kind, so --resume does not replace it; give another --out"
        )
    return place


def _is_adapter(place: Path) -> bool:
    """A folder with a PEFT adapter and nothing else, and no step of a run."""
    there = {entry.name for entry in place.iterdir()} if place.is_dir() else set()
    return there == {CONFIG_FILE, WEIGHTS_FILE} and not CHECKPOINT.match(place.name)


def _is_packed(place: Path) -> bool:
    try:
        packed_identity(place)
    except (InputError, OSError):
        return False
    return True
