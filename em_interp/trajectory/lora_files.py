"""LoRA adapters as PEFT and MLX write them.

The file has the matrices, and `adapter_config.json` says what they mean. A setting that changes the meaning is
implemented here or refused by name. What was trained besides A and B (a head, biases, embeddings) is left out of the
path and named in `Checkpoint.extra_tensors`: the path is that of the adapter, and the base with the adapter alone is
not the trained model.

With DoRA (arXiv 2402.09353) A and B give the direction and a vector of magnitudes, one for each output, scales it.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from em_interp.errors import InputError, listed, one_line
from em_interp.layouts import CONFIG_FILE, PICKLED_FILE, WEIGHTS_FILE
from em_interp.trajectory.checkpoint import Checkpoint, module_name, natural_key, site_name
from em_interp.trajectory.tensor_files import read_safetensors, read_torch
from em_interp.utils.checks import described
from em_interp.utils.files import read_json

PLAIN_INITS = (
    True,
    False,
    None,
    "gaussian",
    "orthogonal",
    "eva",
)  # of A and B alone; others change the base or freeze B
REFUSED_SETTINGS = {  # settings of PEFT under which B · A is not the change of the weight
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QALoRA",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "arrow_config": "Arrow routing",
    "megatron_config": "Megatron's parallel layers",
    "target_parameters": "LoRA on parameters (experts)",
}
APART_SETTINGS = {  # settings under which the path is that of A and B, but the model is another
    "alora_invocation_tokens": "aLoRA (in effect after its invocation tokens only)",
    "layer_replication": "replicated layers",
}
# Settings of how training begins, without effect on what A and B mean.
KNOWN_CONFIGS = ("eva_config", "corda_config", "loftq_config", "lora_ga_config", "runtime_config")
PATTERN_SECONDS, MAX_PATTERN = 0.5, 1000  # for one pattern of a config to match one name; characters
DEFAULT = "default"  # what PEFT calls an adapter that was given no name
ZERO3 = (
    "the usual cause is DeepSpeed ZeRO-3 saving what lies on other processes: set "
    "stage3_gather_16bit_weights_on_model_save"
)

_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<part>A|B|magnitude_vector)(?:\.(?P<adapter>.+))?")
_BESIDES = re.compile(r"\.lora_embedding_|\.lora_[AB](\..+)?\.bias$")  # parts of LoRA that are no A or B of a matrix
_MLX_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<part>[ab])")

Modules = dict[str, dict[str, np.ndarray]]  # the parts of each module


def read_lora(folder: Path, adapter: str | None = None) -> Checkpoint:
    """The LoRA adapter that PEFT saved in `folder`.

    Args:
        folder: With `adapter_model.safetensors` (or `.bin`) and `adapter_config.json`.
        adapter: The one to read where the file holds several.

    Raises:
        InputError: Naming the file that is missing, truncated, holds something other than LoRA matrices or several
            adapters, and the setting under which they mean something else.
    """
    config, file = _read_config(folder / CONFIG_FILE), folder / WEIGHTS_FILE
    if not file.exists() and (folder / PICKLED_FILE).is_file():
        file = folder / PICKLED_FILE
    modules, others = _modules(_tensors(file), file, adapter)
    dora = bool(config.get("use_dora"))
    A, B, scaling, magnitude = {}, {}, {}, {}
    for module in sorted(modules, key=natural_key):
        parts, site = modules[module], site_name(module)
        if site in A:
            raise InputError(f"{file}: two modules would be called {site}; one of them is {module}")
        A[site], B[site] = _matched_pair(parts, module, file)
        scaling[site] = _scaling(config, module, rank=len(A[site]), file=file)
        if dora != ("magnitude_vector" in parts):
            has = "has no" if dora else "has a"
            raise InputError(f"{file}: {module} {has} magnitude, but use_dora in {CONFIG_FILE} is {str(dora).lower()}")
        if dora:
            magnitude[site] = parts["magnitude_vector"].reshape(-1)
    extra_tensors = (*(["DoRA's magnitudes"] if dora else []), *_extra_tensors(config, others))
    return Checkpoint(file, _base(config), A, B, scaling, "lora", magnitude, extra_tensors)


def read_mlx(file: Path) -> Checkpoint:
    """The LoRA adapter in a file of mlx_lm, `<step>_adapters.safetensors`, with `adapter_config.json` beside it.

    MLX keeps `lora_a` (d_in, rank) and `lora_b` (rank, d_out), the transposes of PEFT's, and the scale itself.
    """
    config_file = file.with_name(CONFIG_FILE)
    config = _mapping(read_json(config_file), config_file)
    scale, rank = _mlx_scale(config, config_file)
    modules: Modules = {}
    others = []
    for key, tensor in read_safetensors(file).items():
        match = _MLX_KEY.fullmatch(key)
        if ".lora_" in key and (match is None or tensor.ndim != 2):
            raise InputError(
                f"{file}: {key} of shape {tensor.shape} is no lora_a or lora_b matrix; only those are read"
            )
        if match is None:
            others.append(key)
        else:
            modules.setdefault(module_name(match["module"]), {})[match["part"].upper()] = tensor.T
    if not modules:
        raise InputError(f"{file} holds no lora_a and lora_b; it holds {listed(others) or 'nothing'}")
    A, B = {}, {}
    for module in sorted(modules, key=natural_key):
        A[site_name(module)], B[site_name(module)] = _matched_pair(modules[module], module, file)
        if len(A[site_name(module)]) != rank:
            raise InputError(
                f"{file}: {module} has rank {len(A[site_name(module)])}; {CONFIG_FILE} beside it says {described(rank)}"
            )
    base = config.get("model")
    name = base if isinstance(base, str) else None
    return Checkpoint(file, name, A, B, dict.fromkeys(A, scale), extra_tensors=(*others,))


def _mlx_scale(config: dict[str, Any], file: Path) -> tuple[float, Any]:
    """The scale of an adapter, and its rank as the settings say it."""
    if config.get("fine_tune_type", "lora") != "lora":
        raise InputError(f"{file}: fine_tune_type is {described(config['fine_tune_type'])}; of MLX only lora is read")
    settings = config.get("lora_parameters")
    settings = settings if isinstance(settings, dict) else {}
    if "alpha" in settings and settings["alpha"] != settings.get("rank"):
        raise InputError(f"{file}: lora_parameters has alpha beside scale, which versions of MLX read differently")
    return _number(settings.get("scale"), "lora_parameters.scale", file), settings.get("rank")


def _mapping(config: Any, file: Path) -> dict[str, Any]:
    if not isinstance(config, dict):
        raise InputError(f"{file} should hold an adapter's settings; it holds {type(config).__name__}")
    return config


def _read_config(file: Path) -> dict[str, Any]:
    """The settings; raises InputError by name for one that changes what A and B mean and is not implemented."""
    if not file.exists():
        raise InputError(
            f"{file} is missing: it says what the matrices beside it mean (r, lora_alpha); copy it from the run, where "
            "save_pretrained wrote it"
        )
    config = _mapping(read_json(file), file)
    kind, init = config.get("peft_type", "LORA"), config.get("init_lora_weights", True)
    if kind != "LORA":
        raise InputError(f"{file} describes an adapter of type {described(kind)}; only LoRA is read")
    if (init.lower() if isinstance(init, str) else init) not in PLAIN_INITS:
        raise InputError(
            f"{file}: init_lora_weights is {described(init)}, which changes the base before training or what is "
            "trained, so that base + A, B of a step is not the model; convert the adapters in PEFT "
            "(save_pretrained with path_initial_model_for_weight_conversion)"
        )
    for key, value in config.items():
        if key.startswith("use_") and isinstance(value, str):
            raise InputError(f"{file}: {key} should be true or false; it is {described(value)}")
        unknown = key.startswith("use_") or (key.endswith("_config") and key not in KNOWN_CONFIGS)
        if value and (key in REFUSED_SETTINGS or (unknown and key not in ("use_rslora", "use_dora"))):
            meaning = REFUSED_SETTINGS.get(key, "which this version does not know")
            raise InputError(f"{file}: {key} is set ({meaning}); only plain LoRA and DoRA are read")
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(key) or {}, dict):
            raise InputError(f"{file}: {key} should map patterns to numbers; it is {described(config[key])}")
    if not isinstance(config.get("modules_to_save") or [], list):
        raise InputError(
            f"{file}: modules_to_save should be a list of names; it is {described(config['modules_to_save'])}"
        )
    return config


def _base(config: dict[str, Any]) -> str | None:
    base = config.get("base_model_name_or_path")
    return base if isinstance(base, str) and base else None


def _tensors(file: Path) -> dict[str, np.ndarray]:
    if file.name != PICKLED_FILE:
        return read_safetensors(file)
    saved = read_torch(file)
    if not isinstance(saved, dict) or not all(isinstance(tensor, np.ndarray) for tensor in saved.values()):
        raise InputError(f"{file} should hold tensors by name; it holds {type(saved).__name__}")
    return {str(key): tensor.astype(np.float32, copy=False) for key, tensor in saved.items()}


def _modules(tensors: dict[str, np.ndarray], file: Path, adapter: str | None) -> tuple[Modules, list[str]]:
    """The parts of each module of one adapter, and the names of all other tensors."""
    adapters: dict[str, Modules] = {}
    others = []
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key.removesuffix(".weight"))
        if match is None or not (key.endswith(".weight") or match["part"] == "magnitude_vector"):
            others.append(key)
            continue
        parts = adapters.setdefault(match["adapter"] or DEFAULT, {}).setdefault(module_name(match["module"]), {})
        if match["part"] in parts:
            raise InputError(f"{file}: {key} is there twice, once under another name of the same module or adapter")
        parts[match["part"]] = _filled(tensor, key, file)
    unread = [key for key in others if ".lora_" in key and not _BESIDES.search(key)]
    if unread:
        raise InputError(f"{file} holds {listed(unread)}, which is not a lora_A or lora_B matrix; only those are read")
    if not adapters:
        hint = f"it holds {listed(others)}" if others else f"it is empty: the adapter matched no module, or {ZERO3}"
        raise InputError(f"{file} holds no lora_A and lora_B; {hint}")
    return adapters[_chosen(sorted(adapters), adapter, file)], others


def _filled(tensor: np.ndarray, key: str, file: Path) -> np.ndarray:
    if tensor.ndim == 2 and 0 in tensor.shape:
        raise InputError(f"{file}: {key} has the shape {tensor.shape}, so rank 0 or no weight; {ZERO3}")
    if tensor.size == 0:
        raise InputError(f"{file}: {key} is empty; {ZERO3}")
    if tensor.ndim != 2 and "magnitude" not in key:
        raise InputError(f"{file}: {key} should be a matrix; its shape is {tensor.shape}")
    return tensor


def _chosen(names: list[str], adapter: str | None, file: Path) -> str:
    """Which adapter of a file to read."""
    if len(names) == 1 and (adapter is None or (names == [DEFAULT] and adapter == file.parent.name)):
        return names[0]  # in the folder of an adapter, which has its name, the keys do not
    if adapter is None:
        raise InputError(f"{file} holds several adapters: {listed(names)}; choose one with adapter=…")
    if adapter not in names:
        raise InputError(f"{file} holds no adapter {adapter!r} (adapters: {listed(names)})")
    return adapter


def _extra_tensors(config: dict[str, Any], others: list[str]) -> list[str]:
    """The names of trained tensors beyond A and B."""
    apart = [meaning for key, meaning in APART_SETTINGS.items() if config.get(key)]
    names = {module_name(key) for key in others}
    kept = config.get("modules_to_save") or []
    names |= {str(name) for name in kept if not any(str(name) in other for other in others)}
    return [*apart, *sorted(names, key=natural_key)]


def _matched_pair(parts: dict[str, np.ndarray], module: str, file: Path) -> tuple[np.ndarray, np.ndarray]:
    present = [part for part in ("A", "B") if part in parts]
    if len(present) < 2:
        raise InputError(f"{file}: {module} has lora_{''.join(present) or '…'} only; expected lora_A and lora_B")
    A, B = parts["A"], parts["B"]
    if A.shape[0] != B.shape[1]:
        raise InputError(f"{file}: {module} has lora_A {A.shape} and lora_B {B.shape}; their ranks differ")
    return A, B


def _scaling(config: dict[str, Any], module: str, rank: int, file: Path) -> float:
    """alpha / rank, or alpha / sqrt(rank) with rsLoRA; both numbers may be set by pattern for this module."""
    place = file.with_name(CONFIG_FILE)
    expected = _by_pattern(config.get("rank_pattern"), module, config.get("r"), place)
    if rank not in expected:
        raise InputError(f"{file}: {module} has rank {rank}; {CONFIG_FILE} beside it says {described(expected[0])}")
    alphas = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"), place)
    if any(alpha != alphas[0] for alpha in alphas[1:]):
        raise InputError(
            f"{place}: alpha_pattern gives {module} {listed(alphas)}; PEFT trains with its first pattern that matches "
            "and saves them in another order, so which was used is not known: leave one pattern for it"
        )
    alpha = _number(alphas[0], "lora_alpha", place)
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _number(value: Any, name: str, file: Path) -> float:
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not numeric or not abs(value) < 1e30 or value == 0:
        raise InputError(f"{file}: {name} should be a number other than 0; it is {described(value)}")
    return float(value)


def _by_pattern(patterns: dict[str, Any] | None, module: str, default: Any, file: Path) -> list[Any]:
    """The values of the patterns that match the end of the module's name, from a dot on; where none does, the default.

    PEFT takes the first in the order they were given in, and saves them in that of the alphabet.
    """
    values = []
    for pattern, value in (patterns or {}).items():
        try:
            if _matches(pattern, module):
                values.append(value)
        except ValueError as error:
            name = described(pattern)
            raise InputError(f"{file}: the pattern {name} cannot be matched with names of modules: {error}") from None
    return values or [default]


@lru_cache(maxsize=2**16)
def _matches(pattern: str, module: str) -> bool:
    """Whether the pattern matches; raises ValueError for one that is none, or takes too long."""
    import regex  # its patterns are those of re, and it can be told to stop

    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"it has {len(pattern)} characters")
    try:
        return regex.fullmatch(rf"(.*\.)?({pattern})", module, timeout=PATTERN_SECONDS) is not None
    except TimeoutError:
        raise ValueError("it takes too long") from None
    except (regex.error, RecursionError) as error:
        raise ValueError(one_line(str(error))) from None
