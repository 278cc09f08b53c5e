"""LoRA adapters in a model: added at exactly the sites of a config, or found in a model that has one already."""

from __future__ import annotations

import json
import re
import warnings
from enum import Enum
from typing import Any

from em_interp.config.run_config import AdapterConfig, FullConfig
from em_interp.errors import InputError

Weights = dict[str, Any]  # names as in a PEFT file, such as base_model.model.….down_proj.lora_A.weight → parameter
PEFT_PREFIX = "base_model.model."
LORA_PARAMETER = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])\.(?P<adapter>[^.]+)\.weight")


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
    """Full names of the modules that `config` targets; where it names none, all linear modules of its layers.

    Raises InputError listing what the model has where one does not exist.
    """
    available = sites_of(model)
    if not available:
        raise no_layers(model)
    layers = sorted({layer for layer, _ in available})
    names = sorted({name for _, name in available})
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
    chosen = [full for (layer, name), full in available.items() if layer in wanted and _is_any(name, modules)]
    if not chosen:
        raise InputError(f"no module {', '.join(config.target_modules)} in layers {list(wanted)} of the base model")
    return chosen


def no_layers(model: Any) -> InputError:
    """The error for a model in which nothing can be trained."""
    return InputError(
        f"{type(model).__name__} has no linear modules in `layers` of its decoder; expected a decoder such as Qwen2, "
        "Llama or Gemma 3 (GPT-2's Conv1D is not read)"
    )


def _is(name: str, module: str) -> bool:
    return name == module or name.endswith("." + module)


def _is_any(name: str, modules: tuple[str, ...]) -> bool:
    return any(_is(name, module) for module in modules)


def add_adapter(model: Any, config: AdapterConfig, seed: int, base: str) -> Any:
    """`model` as a PeftModel with fresh LoRA weights (A drawn with `seed`, B zero) at exactly the sites of `config`.

    `base` is the base model's name in the adapter's config. Raises InputError for a site that the model does not
    have: an adapter that PEFT puts nowhere trains without complaint and changes nothing.
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
    modules = [name for name, module in adapted.named_modules() if "default" in getattr(module, "lora_A", ())]
    placed = [name.removeprefix(PEFT_PREFIX) for name in modules]
    if sorted(placed) != sorted(sites):
        raise InputError(f"PEFT put adapters at {', '.join(placed) or 'no module'}; expected {', '.join(sites)}")
    return adapted


def trained_adapter(model: Any) -> str:
    """The name of the LoRA adapter that is trained in `model`, a PeftModel or one with transformers' `add_adapter`.

    Raises InputError where there is none, where there are several, and where other parameters are trained too: a
    path of A and B would leave them out.
    """
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    matches = {name: LORA_PARAMETER.fullmatch(name) for name in trained}
    adapters = sorted({match["adapter"] for match in matches.values() if match})
    if not adapters:
        found = ", ".join(f"{name} ({config.peft_type})" for name, config in getattr(model, "peft_config", {}).items())
        raise InputError(
            f"no LoRA adapter is trained in the model ({type(model).__name__}, adapters: {found or 'none'}); give the "
            "Trainer a model from peft.get_peft_model(model, LoraConfig(...))"
        )
    if len(adapters) > 1:
        raise InputError(f"the adapters {', '.join(adapters)} are trained at once; expected one (model.set_adapter)")
    others = [name for name, match in matches.items() if match is None]
    if others:
        raise InputError(
            f"{len(others)} parameters besides the adapter's A and B are trained, such as {others[0]}; expected all "
            "others to be frozen, because the path of the adapter would leave them out"
        )
    return adapters[0]


def adapter_weights(model: Any, adapter: str = "default") -> Weights:
    """The parameters of one LoRA adapter of a model, by the names they have in a PEFT file."""
    matches = [(LORA_PARAMETER.fullmatch(name), parameter) for name, parameter in model.named_parameters()]
    return {
        f"{PEFT_PREFIX}{match['module'].removeprefix(PEFT_PREFIX)}.lora_{match['part']}.weight": parameter
        for match, parameter in matches
        if match and match["adapter"] == adapter
    }


def base_weights(model: Any) -> Weights:
    """The tensors of the base model within a model that has LoRA adapters, by the names they have without them."""
    return {
        name.removeprefix(PEFT_PREFIX).replace(".base_layer.", "."): tensor
        for name, tensor in model.state_dict().items()
        if ".lora_" not in name
    }


def adapter_config_text(model: Any, adapter: str = "default") -> str:
    """What PEFT writes to adapter_config.json, with sets in order, so that equal adapters give equal bytes."""
    config = model.peft_config[adapter].to_dict() | {"inference_mode": True}
    return json.dumps({key: _plain(value) for key, value in sorted(config.items())}, indent=2)


def _plain(value: Any) -> Any:
    if isinstance(value, set):
        return sorted(value)
    return value.value if isinstance(value, Enum) else value
