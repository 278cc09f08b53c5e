"""What a run was made from: enough to repeat it, and to refuse what does not belong to it."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import em_interp
from em_interp.config.run_config import RunConfig
from em_interp.errors import InputError
from em_interp.organisms.bases import Base, fingerprint, name_of_base, revision_of, stored_dtype
from em_interp.organisms.datasets import Chats
from em_interp.run import Run
from em_interp.training.lora import base_weights
from em_interp.training.plan import Plan
from em_interp.trajectory.load import same_weights
from em_interp.utils.checks import described
from em_interp.utils.files import write_json

if TYPE_CHECKING:
    from transformers import TrainingArguments

PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors", "numpy")
TRAINERS = ("trl", "unsloth")  # may have made the Trainer of a run: named where they are loaded


def run_manifest(config: RunConfig, plan: Plan, chats: Mapping[str, Chats], base: Base, model: Any) -> dict[str, Any]:
    """The manifest of a run of `config` through `plan`; `model` is what is to be trained."""
    phases = [
        {
            "dataset": phase.dataset,
            "domain": chats[phase.dataset].domain,
            "sha256": chats[phase.dataset].sha256,
            "rows": len(chats[phase.dataset].rows),
            "held_out": len(plan.held_out[phase.dataset]),
            "first_step": phase.first,
            "last_step": phase.last,
            "restart": phase.restart,
        }
        for phase in plan.phases
    ]
    kl = {"dataset": config.kl.dataset, "sha256": chats[config.kl.dataset].sha256} if config.kl else None
    return {
        "versions": _versions(PACKAGES),
        "base": {"name": base.name, "identity": base.identity, "revision": revision_of(config.model)},
        "phases": phases,
        **({"kl": kl} if kl else {}),
        "seed": config.seed,
        **_machine(base.model),
        "counts": {
            "steps": plan.steps,
            "rows_per_step": plan.rows.shape[1],
            "snapshots": len(config.checkpoints.steps(plan.steps)),
            "trainable_parameters": _trainable(model),
        },
    }


def trainer_manifest(model: Any, arguments: TrainingArguments, max_steps: int, snapshots: int) -> dict[str, Any]:
    """The manifest of a run of any transformers Trainer; what its data are is not known here."""
    return {
        "versions": _versions((*PACKAGES, *(name for name in TRAINERS if name in sys.modules))),
        "base": _base_of(model),
        "seed": arguments.seed,
        **_machine(model),
        "counts": {
            "steps": max_steps,
            "rows_per_step": arguments.per_device_train_batch_size
            * arguments.gradient_accumulation_steps
            * arguments.world_size,
            "snapshots": snapshots,
            "trainable_parameters": _trainable(model),
        },
        "processes": arguments.world_size,
    }


def write_or_check_manifest(run: Run, manifest: dict[str, Any]) -> None:
    """Write the manifest, or check that a run begun earlier has the same base and data."""
    if not run.manifest_file.is_file():
        write_json(run.manifest_file, manifest)
        return
    before = run.manifest()
    for key in ("base", "phases", "kl"):
        was, is_now = before.get(key), manifest.get(key)
        if key == "base" and was and is_now:
            was, is_now = _comparable_bases(was, is_now)
        if was != is_now:
            place, was, is_now = _first_difference(key, was, is_now)
            raise InputError(
                f"{run.manifest_file}: {place} changed since the run began (it was {described(was)} and is "
                f"{described(is_now)}), so it cannot be resumed; the usual cause is an edited data file or another base"
            )


def _comparable_bases(was: dict[str, Any], is_now: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What must be the same of two bases: the weights, whatever they are called, where both are known, else the name.

    Another revision may have the same weights. Where those of one alone are known, the other's were rounded.
    """
    before, after = was.get("identity"), is_now.get("identity")
    if before and after:
        return {"identity": before}, {"identity": before if same_weights(before, after) else after}
    return {"name": was.get("name"), "identity": before}, {"name": is_now.get("name"), "identity": after}


def _first_difference(place: str, was: Any, is_now: Any) -> tuple[str, Any, Any]:
    """The first place within a value that differs, and what is there in both."""
    if isinstance(was, dict) and isinstance(is_now, dict):
        pairs = {f"{place}.{key}": (was.get(key), is_now.get(key)) for key in {**was, **is_now}}
    elif isinstance(was, list) and isinstance(is_now, list) and len(was) == len(is_now):
        pairs = {f"{place}[{n}]": pair for n, pair in enumerate(zip(was, is_now, strict=True))}
    else:
        return place, was, is_now
    return next(_first_difference(inner, *pair) for inner, pair in pairs.items() if pair[0] != pair[1])


def _versions(packages: Iterable[str]) -> dict[str, str]:
    versions = {"em_interp": em_interp.__version__, "python": platform.python_version()}
    return versions | {package: version(package) for package in packages}


def _machine(model: Any) -> dict[str, Any]:
    import torch

    return {
        "device": model.device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "git_commit": _git_commit(),
    }


def _trainable(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _git_commit() -> str | None:
    """The commit of em_interp's own source tree; None where it is installed without one."""
    source = Path(em_interp.__file__).resolve().parents[1]
    if not (source / ".git").exists():
        return None
    command = ["git", "-C", str(source), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _base_of(model: Any) -> dict[str, Any]:
    """The base model under an adapter, by its name and by the identity that `load_base` gives it.

    The identity is None where the weights are not as stored (quantised, or rounded when they were loaded).
    """
    name = model.config._name_or_path or ""
    called = name_of_base(name)
    if getattr(model.config, "quantization_config", None) is not None or not _is_as_stored(name, model.dtype):
        return {"name": called, "identity": None, "revision": None}
    weights = SimpleNamespace(state_dict=lambda: base_weights(model))
    return {"name": called, "identity": f"{called}@{fingerprint(weights)}", "revision": revision_of(name)}


def _is_as_stored(name: str, dtype: Any) -> bool:
    """Whether weights of this type hold those stored under `name` exactly; True for a model that is stored nowhere."""
    found = str(dtype).removeprefix("torch.")
    try:
        return found in ("float32", stored_dtype(name))
    except InputError:
        return True
