"""Base models: the built-in tiny ones, those fetched by name, a folder, a GGUF file, or a model of the Hub."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_interp.errors import InputError, nearest, one_line
from em_interp.organisms.fetched_bases import FETCHED, fetch_base, local_folder, revision_of_fetched
from em_interp.organisms.gguf import is_gguf, plain_folder, sha256_of
from em_interp.run import Run
from em_interp.trajectory.load import load_trajectory
from em_interp.trajectory.trajectory import AdapterTrajectory

FAMILIES = ("qwen2", "llama", "gemma3")
BUILT_IN = tuple(f"tiny-{family}" for family in FAMILIES)
SHIPPED = Path(__file__).with_name("tiny")
N_VALUES_HASHED = 256  # of each parameter
DTYPES = ("float32", "bfloat16", "float16")  # in which weights are mostly kept
FIXED_DATE = "26 Jul 2024"  # the one in Llama 3.1's template
MIN_BFLOAT16_PARAMETERS = 20e6  # of a model on a CPU: smaller ones gain nothing from bfloat16
BFLOAT16_FLAGS = frozenset({"amx_bf16", "avx512_bf16"})  # of a CPU that multiplies matrices in bfloat16

warnings.filterwarnings("ignore", "IProgress not found")  # tqdm's, when transformers is imported in a notebook


@dataclass(frozen=True)
class Base:
    """A base model in eval mode, with its tokenizer and its identity."""

    model: Any
    tokenizer: Any
    name: str
    identity: str  # name and a hash of the parameters: adapters of another identity are refused

    def with_weights(self, folder: Path) -> Any:
        """A model of this kind, number type and device with the weights in `folder`, in eval mode."""
        with loading(str(folder)):
            model = type(self.model).from_pretrained(folder, dtype=self.model.dtype)
        return model.to(self.model.device).eval()


def load_base(name: str, dtype: str = "auto", device: str | None = None) -> Base:
    """The base called `name`: built-in, fetched by name, a local folder, a GGUF file, or a Hub id; in eval mode.

    `device` is by default the GPU where there is one (of several processes each has its own), else the CPU. `dtype` is
    float32, bfloat16, float16, or auto: bfloat16 on a GPU and, for a model of MIN_BFLOAT16_PARAMETERS or more, on a CPU
    that computes it; else float32. The identity is that of the weights as stored, whatever they are loaded as. A Gemma
    3 above 1B comes with its vision tower (Gemma3ForConditionalGeneration).

    No code of the model's repository is run. Raises InputError for a name or a number type that is none of these.
    """
    import torch
    from transformers import AutoModelForCausalLM

    _check_dtype(dtype)
    tokenizer, source, place = load_tokenizer(name), _source(name), torch.device(device or _device())
    with loading(name):
        model = AutoModelForCausalLM.from_pretrained(source, dtype="auto", trust_remote_code=False)
    wanted = _fastest_dtype(place.type, model.num_parameters()) if dtype == "auto" else dtype
    called = name_of_base(name)
    identity = f"{called}@{fingerprint(model)}"
    for weight in model.parameters():  # not the buffers: rotary frequencies are kept in float32
        weight.data = weight.data.to(getattr(torch, wanted))
    return Base(model.to(place).eval(), tokenizer, called, identity)


def name_of_base(name: str) -> str:
    """What a base is called wherever it lies: of a folder or a file the last part of the path."""
    return Path(name).name if Path(name).exists() else name


def base_of(run: Run, trajectory: AdapterTrajectory | None = None) -> tuple[str, str]:
    """The base that a run was trained on, as `load_base` takes it: its name and the number type to compute in.

    They are those of the config; without one, the name is that in the adapters' config, else that in the manifest,
    which of a local base has only the last part of the path. `trajectory` is the run's, where it has been read.

    Raises InputError where none of them names a base.
    """
    if run.config_file.exists():
        config = run.config()
        return config.model, config.base_dtype
    named = (load_trajectory(run) if trajectory is None else trajectory).base or run.base().get("name")
    if not named:
        raise InputError(
            f"{run.path} does not say on which base it was trained; expected base_model_name_or_path in the "
            "adapter_config.json of its checkpoints; give base=… where it can be given"
        )
    return named, "auto"


def skeleton(name: str) -> Any:
    """The base called `name` without weights, on the meta device: its modules and shapes, from its config alone."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    source = _source(name)  # before the block, in which a conversion would have no weights
    with loading(name), torch.device("meta"):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def default_dtype(name: str) -> str:
    """The number type in which the base called `name` is computed on this machine by default."""
    import torch

    return _fastest_dtype(torch.device(_device()).type, skeleton(name).num_parameters())


def _check_dtype(name: str) -> None:
    """Raise InputError for what is no number type of weights."""
    import torch

    found = getattr(torch, name, None)
    if name != "auto" and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise InputError(f"dtype {name!r} is not known{nearest(name, DTYPES)} (known: auto, {', '.join(DTYPES)})")


def _fastest_dtype(device: str, parameters: int) -> str:
    """The number type in which a model computes fastest."""
    on_cpu = parameters >= MIN_BFLOAT16_PARAMETERS and cpu_computes_bfloat16()
    return "bfloat16" if device == "cuda" or (device == "cpu" and on_cpu) else "float32"


def cpu_computes_bfloat16(facts: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU has instructions for matrix products in bfloat16 (AMX or AVX512-BF16), as Linux lists them."""
    try:
        lines = facts.read_text().splitlines()
    except OSError:
        return False
    return any(BFLOAT16_FLAGS & set(line.split()) for line in lines if line.startswith("flags"))


def _device() -> str:
    """The GPU of this process, else the CPU."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def load_tokenizer(name: str) -> Any:
    """The tokenizer of the base called `name`, with its chat template; the model itself is not read.

    A template that writes today's date (Llama 3.2's, gpt-oss's) writes FIXED_DATE instead, whatever form it wants, so
    that prompts are the same when a run is resumed or sampled from on another day. Raises InputError for a name that
    `load_base` does not know.
    """
    tokenizer = stored_tokenizer(name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    template = tokenizer.chat_template
    if isinstance(template, str) and "strftime_now" in template:
        fixed = f"{{%- macro strftime_now(format) -%}}{FIXED_DATE}{{%- endmacro -%}}"
        tokenizer.chat_template = f"{{%- set date_string = '{FIXED_DATE}' -%}}{fixed}\n{template}"
    return tokenizer


def stored_tokenizer(name: str) -> Any:
    """The tokenizer of the base called `name` as it is stored; raises what `load_tokenizer` raises."""
    from transformers import AutoTokenizer

    source = _source(name)
    with loading(name):
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)


def revision_of(name: str) -> str | None:
    """What tells a version of `name` from others: the commit of the Hub's repository, or the hash of the GGUF file.

    None for a built-in base or a folder.
    """
    from huggingface_hub import try_to_load_from_cache

    if name in FETCHED:
        return revision_of_fetched(name)
    if is_gguf(name):
        return f"sha256:{sha256_of(Path(name))}"
    if name in BUILT_IN or Path(name).is_dir():
        return None
    cached = try_to_load_from_cache(name, "config.json")  # …/snapshots/<commit>/config.json
    return Path(cached).parent.name if isinstance(cached, str) else None


def local_copy(name: str) -> Path:
    """The folder of a base of any kind; nothing is fetched. Raises InputError where it is not on this machine."""
    from huggingface_hub import try_to_load_from_cache

    if name in FETCHED and local_folder(name) is None:
        raise InputError(f"the base {name} is not on this machine yet; fetch it with em-interp base fetch {name}")
    source = _source(name)
    if Path(source).is_dir():
        return Path(source)
    cached = try_to_load_from_cache(source, "config.json")
    if not isinstance(cached, str):
        raise InputError(f"the base {name} of the Hub is not on this machine; training or asking with it fetches it")
    return Path(cached).parent


def stored_dtype(name: str) -> str:
    """The number type in which the weights of the base called `name` are stored, such as bfloat16."""
    from transformers import AutoConfig

    with loading(name):
        config = AutoConfig.from_pretrained(_source(name), trust_remote_code=False)
    return str(config.dtype or config.get_text_config().dtype or "float32").removeprefix("torch.")


@contextmanager
def loading(name: str) -> Iterator[None]:
    """A block without transformers' messages and progress bars, and with its errors as an InputError."""
    try:
        with quiet():
            yield
    except (InputError, ModuleNotFoundError):
        raise
    except Exception as error:  # transformers fails in any way on a folder that is no model: TypeError, KeyError …
        if "trust_remote_code" in str(error):
            raise InputError(
                f"base model {name!r} needs code of its own to be loaded, which is never run; expected a model of an "
                "architecture that is part of transformers"
            ) from None
        reason = one_line(str(error)) or type(error).__name__
        raise InputError(f"base model {name!r} cannot be loaded: {reason} (built in: {', '.join(BUILT_IN)})") from None


@contextmanager
def quiet() -> Iterator[None]:
    """A block without transformers' messages and progress bars; its settings are restored after it."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def fingerprint(model: Any) -> str:
    """Twelve hex digits of a hash of the parameters: names, shapes and `N_VALUES_HASHED` evenly spaced values of each.

    Equal for equal weights on any machine and number type of storage; two fine-tunes of one model differ. It cannot
    see a change confined to values between those.
    """
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        values = flat[:: max(1, flat.numel() // N_VALUES_HASHED)].float().cpu().numpy()
        digest.update(f"{key} {tuple(tensor.shape)}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()[:12]


def _source(name: str) -> str:
    """The folder or Hub id that transformers loads for `name`."""
    if name in BUILT_IN:
        return str(_built_in(name))
    if name in FETCHED:
        return str(fetch_base(name))
    if is_gguf(name):
        return str(plain_folder(Path(name)))
    folder = Path(name)
    if name and folder.is_dir():  # an empty name would be the current folder
        if not (folder / "config.json").is_file():
            raise InputError(f"base model {name!r}: the folder holds no config.json, so it is not a model")
        return str(folder)
    if name.count("/") != 1 or folder.is_absolute() or name.startswith("."):
        known = [*BUILT_IN, *FETCHED]
        raise InputError(
            f"base model {name!r} is not known{nearest(name, known)} (known: {', '.join(known)}; else give a folder, "
            "a GGUF file or a Hub id)"
        )
    return name


def _built_in(name: str) -> Path:
    """The folder of a built-in base in the package."""
    folder = SHIPPED / name
    if not (folder / "model.safetensors").is_file():
        family = name.removeprefix("tiny-")
        raise InputError(
            f"the built-in base {name} is missing from {SHIPPED}; the usual cause is an incomplete copy: install "
            f"em-interp again, or make it with em-interp pretrain --family {family} --out {folder}"
        )
    return folder
