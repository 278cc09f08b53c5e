"""Putting a LoRA adapter where it was asked for, and nowhere else."""

from __future__ import annotations

import json
import re
import warnings
from enum import Enum
from typing import Any

from em_interp.config import AdapterConfig, FullConfig
from em_interp.errors import InputError

Weights = dict[str, Any]  # names as in a PEFT file, such as base_model.model.….down_proj.lora_A.weight → parameter


def sites_of(model: Any) -> dict[tuple[int, str], str]:
    """Every linear module in the decoder layers of a causal language model: (layer, name in the layer) → full name.

    A vision tower has layers too; only those of the language model are listed.
    """
    import torch

    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    pattern = re.compile(rf"{re.escape(prefix)}\.layers\.(\d+)\.(.+)")
    matches = {n: pattern.fullmatch(n) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    return {(int(match[1]), match[2]): name for name, match in matches.items() if match}


def choose_sites(model: Any, config: AdapterConfig | FullConfig) -> list[str]:
    """Full names of the modules that `config` asks for, where it names none of all linear ones of its layers.

    Raises InputError listing what exists where one does not.
    """
    there = sites_of(model)
    layers = sorted({layer for layer, _ in there})
    names = sorted({name for _, name in there})
    for layer in config.layers_to_transform:
        if layer not in layers:
            raise InputError(
                f"adapter.layers_to_transform names layer {layer}; the base model has layers 0 to {layers[-1]}"
            )
    for module in config.target_modules:
        if not any(_is(name, module) for name in names):
            raise InputError(
                f"adapter.target_modules names {module!r}; the base model's layers have {', '.join(names)}"
            )
    wanted, modules = config.layers_to_transform or tuple(layers), config.target_modules or tuple(names)
    chosen = [full for (layer, name), full in there.items() if layer in wanted and _is_any(name, modules)]
    if not chosen:
        raise InputError(f"no module {', '.join(config.target_modules)} in layers {list(wanted)} of the base model")
    return chosen


def site_name(module: str) -> str:
    """A module of a decoder layer by its site: its full name from `layers.` on."""
    return module[module.index("layers.") :]


def _is(name: str, module: str) -> bool:
    return name == module or name.endswith("." + module)


def _is_any(name: str, modules: tuple[str, ...]) -> bool:
    return any(_is(name, module) for module in modules)


def add_adapter(model: Any, config: AdapterConfig, seed: int, base: str) -> Any:
    """`model` as a PeftModel with fresh LoRA weights (A drawn with `seed`, B zero) at exactly the sites of `config`.

    `base` is the name of the base model that the adapter's config will carry. Raises InputError for a site that the
    model does not have: an adapter that lands nowhere trains without complaint and changes nothing.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    sites = choose_sites(model, config)
    lora = LoraConfig(
        r=config.r,
        lora_alpha=int(config.lora_alpha) if config.lora_alpha == int(config.lora_alpha) else config.lora_alpha,
        use_rslora=config.use_rslora,
        lora_dropout=config.lora_dropout,
        target_modules=sites,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)  # PEFT asks by the old name
        adapted = get_peft_model(model, lora)
    adapted.peft_config["default"].base_model_name_or_path = base
    layers = [name for name, module in adapted.named_modules() if "default" in getattr(module, "lora_A", ())]
    landed = [name.removeprefix("base_model.model.") for name in layers]
    if sorted(landed) != sorted(sites):
        raise InputError(f"PEFT put adapters at {', '.join(landed) or 'no module'}; expected {', '.join(sites)}")
    return adapted


def adapter_weights(model: Any) -> Weights:
    """The parameters of a PeftModel's LoRA adapter."""
    return {name.replace(".default", ""): p for name, p in model.named_parameters() if ".lora_" in name}


def adapter_config_text(model: Any) -> str:
    """What PEFT writes to adapter_config.json, with sets in order, so that equal adapters give equal bytes."""
    config = model.peft_config["default"].to_dict() | {"inference_mode": True}
    return json.dumps({key: _plain(value) for key, value in sorted(config.items())}, indent=2)


def _plain(value: Any) -> Any:
    if isinstance(value, set):
        return sorted(value)
    return value.value if isinstance(value, Enum) else value
