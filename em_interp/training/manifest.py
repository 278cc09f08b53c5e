"""What a run was made of: enough to repeat it, and to refuse what does not belong to it."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import em_interp
from em_interp.config import RunConfig
from em_interp.organisms.bases import Base, revision_of
from em_interp.organisms.data import Chats
from em_interp.training.plan import Plan

PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors", "numpy")


def make_manifest(config: RunConfig, plan: Plan, chats: Mapping[str, Chats], base: Base, model: Any) -> dict[str, Any]:
    """The manifest of a run of `config` through `plan`, with `model` the one that is to be trained."""
    import torch

    return {
        "versions": {"em_interp": em_interp.__version__, "python": platform.python_version()}
        | {package: version(package) for package in PACKAGES},
        "base": {"name": base.name, "identity": base.identity, "revision": revision_of(config.model)},
        "phases": [
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
        ],
        **({"kl": {"dataset": config.kl.dataset, "sha256": chats[config.kl.dataset].sha256}} if config.kl else {}),
        "seed": config.seed,
        "device": base.model.device.type,
        "dtype": str(base.model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "git_commit": git_commit(),
        "counts": {
            "steps": plan.steps,
            "rows_per_step": plan.rows.shape[1],
            "snapshots": len(config.checkpoints.steps(plan.steps)),
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        },
    }


def git_commit() -> str | None:
    """The commit of em_interp's own source tree; None where it is installed without one."""
    source = Path(em_interp.__file__).resolve().parents[1]
    if not (source / ".git").exists():
        return None
    try:
        said = subprocess.run(["git", "-C", source, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return said.stdout.strip()
