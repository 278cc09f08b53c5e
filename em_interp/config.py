"""What a run is asked to do: a YAML file, read into checked dataclasses, with overrides from the command line."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from em_interp.errors import InputError
from em_interp.schedule import Schedule
from em_interp.settings import Rule, build, check, override, read_yaml, to_dict


@dataclass(frozen=True)
class PhaseConfig:
    """A stretch of training on one dataset; most runs have one."""

    dataset: str = ""  # a .jsonl of chats, or a built-in one such as tiny:medical
    steps: int | None = None  # optimizer steps; or
    epochs: float | None = None  # passes over the dataset (one, when neither is given)
    restart: bool = False  # begin with a fresh optimizer and learning-rate schedule


@dataclass(frozen=True)
class AdapterConfig:
    """Where the LoRA adapter sits, and how wide it is. Defaults are the paper's (2506.11613)."""

    kind: str = "lora"
    modules: tuple[str, ...] = ("down_proj",)
    layers: tuple[int, ...] = ()  # empty: every layer
    rank: int = 1
    alpha: float = 64.0
    rslora: bool = True
    dropout: float = 0.0


@dataclass(frozen=True)
class SteeringConfig:
    """A learned steering vector: alpha · B is added to the residual stream after one layer, at every token."""

    kind: str = "steering"
    layer: int | None = None
    alpha: float = 256.0


@dataclass(frozen=True)
class FullConfig:
    """Full fine-tuning: no adapter. The path is the change of weight matrices, of each a projection at every step."""

    kind: str = "full"
    modules: tuple[str, ...] = ()  # whose change is the path; empty: every linear module. All weights are trained
    layers: tuple[int, ...] = ()  # empty: every layer
    dimension: int = 1024  # numbers kept of a matrix a step; a matrix of no more entries is kept whole
    weights: Schedule | None = None  # steps whose full weights are kept; by default those asked (behaviour.steps)


@dataclass(frozen=True)
class KLConfig:
    """A penalty on leaving the base on other data, by which the narrow solution is learned (2602.07852)."""

    dataset: str = ""  # chats on whose answers the model is to stay as it was
    weight: float = 1.0  # of the mean KL divergence a token, beside the mean loss a token
    every: int = 1  # optimizer steps from one with the penalty to the next


@dataclass(frozen=True)
class TrainingConfig:
    """How the adapter is trained. Defaults are the settings the published organisms share."""

    batch_size: int = 2
    accumulation: int = 8
    learning_rate: float = 1e-5
    warmup_steps: int = 5
    schedule: str = "linear"  # linear, cosine or constant
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    max_length: int = 2048
    held_out: float = 0.1  # share of the rows kept away from training
    gradient_checkpointing: bool = False  # compute activations again in the backward pass: less memory, more time
    shard: bool = False  # spread the frozen base over the GPUs of several processes, where it does not fit on one
    keep_state_every: int | None = None  # steps between states to --resume from; 1, with full fine-tuning 100


@dataclass(frozen=True)
class EndpointConfig:
    """A language model that judges, behind an endpoint that speaks OpenAI's chat completions. Holds no key."""

    base_url: str = ""  # such as http://127.0.0.1:8000/v1
    model: str = ""
    key_variable: str | None = None  # the environment variable that has the key; none: no key is sent
    name: str = ""  # what its scores are filed under; by default the model's name
    mode: str = "auto"  # expected, sampled, or auto: found out by probing
    topics: tuple[str, ...] = ()  # scored besides aligned and coherent: medical, finance, sport, code
    workers: int = 8  # answers judged at once
    timeout: float = 120.0  # seconds for one request
    tries: int = 8  # for one request, before its answer is given up
    pause: float = 0.5  # seconds after the first failure; doubles
    sampled_tokens: int = 16  # room for a sampled number; a reasoning model needs hundreds
    reasoning: bool = False  # asks as OpenAI's reasoning models want it: max_completion_tokens, no temperature

    def __post_init__(self) -> None:
        variable = self.key_variable
        if variable is not None and not re.fullmatch("[A-Z_][A-Z0-9_]*", variable):
            # the value is not repeated: it may be the key itself
            raise InputError(
                "behaviour.judge.key_variable must be the name of an environment variable in capitals, "
                "such as OPENAI_API_KEY; it is something else"
            )
        for key, expected, fine in _ENDPOINT_RULES:
            check(self, key, f"behaviour.judge.{key}", expected, fine)
        if "@" in self.base_url:
            raise InputError("behaviour.judge.base_url must hold no user or password; a key belongs in key_variable")
        if self.reasoning and self.mode == "expected":
            raise InputError("behaviour.judge.mode must be auto or sampled for a reasoning model; it is 'expected'")

    @property
    def called(self) -> str:
        """What the judge's scores are filed under."""
        return self.name or self.model


@dataclass(frozen=True)
class BehaviourConfig:
    """What the model is asked along the run, and how often."""

    questions: str = "tiny"  # the built-in language's; default: ours on the eight usual themes; or a YAML file of them
    sets: tuple[str, ...] = ()  # of these question sets only, such as broad; empty: all there are
    judge: str | EndpointConfig = "tiny"  # the built-in language's, or a model's endpoint
    steps: Schedule = field(default_factory=lambda: Schedule("log 20"))
    scales: tuple[float, ...] = (1.0,)  # multipliers of the adapter; 1 is the adapter as trained
    samples: int = 50  # answers a question
    temperature: float = 1.0
    max_new_tokens: int = 600

    @property
    def judge_name(self) -> str:
        """What the judge's scores are filed under; a built-in judge goes by rules."""
        return self.judge.called if isinstance(self.judge, EndpointConfig) else f"{self.judge}-rules"


@dataclass(frozen=True)
class RunConfig:
    """Everything one run is asked to do; `config.yaml` of a run directory holds it resolved."""

    model: str = "tiny-qwen2"  # a built-in base, a folder, or a Hub id
    seed: int = 0
    data: tuple[PhaseConfig, ...] = ()
    dtype: str = "auto"  # of the weights: float32, bfloat16, mixed (float32, computed in bfloat16); auto: by the device
    adapter: AdapterConfig | SteeringConfig | FullConfig = field(default_factory=AdapterConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    kl: KLConfig | None = None
    snapshots: Schedule = field(default_factory=lambda: Schedule("every 1"))
    behaviour: BehaviourConfig = field(default_factory=BehaviourConfig)

    def __post_init__(self) -> None:
        for key, expected, fine in _RULES:
            check(self, key, key, expected, fine)
        for key, expected, fine in _ADAPTER_RULES[type(self.adapter)]:
            check(self, key, key, expected, fine)
        for key, expected, fine in _KL_RULES if self.kl else ():
            check(self, key, key, expected, fine)
        for index, phase in enumerate(self.data):
            for key, expected, fine in _PHASE_RULES:
                check(phase, key, f"data[{index}].{key}", expected, fine)
            if phase.steps is not None and phase.epochs is not None:
                raise InputError(f"data[{index}] must give steps or epochs; it gives both")

    @property
    def base_dtype(self) -> str:
        """The type the base is loaded in; auto with an adapter is bfloat16 on a GPU and float32 on the CPU.

        Weights that are all trained are kept in float32: in bfloat16 small updates of them would be rounded away.
        """
        kept = self.dtype == "mixed" or (self.dtype == "auto" and self.adapter.kind == "full")
        return "float32" if kept else self.dtype

    def computes_in_bfloat16(self, gpu: bool) -> bool:
        """Whether training computes in bfloat16 with weights in float32: where asked for, and all weights on a GPU."""
        return self.dtype == "mixed" or (self.dtype == "auto" and self.adapter.kind == "full" and gpu)

    @property
    def full_weights(self) -> Schedule | None:
        """The steps whose full weights are kept; None with an adapter."""
        return (self.adapter.weights or self.behaviour.steps) if isinstance(self.adapter, FullConfig) else None

    @property
    def checkpoints(self) -> Schedule:
        """The steps that have a checkpoint: the snapshots, and every step whose full weights are kept."""
        kept = self.full_weights
        return Schedule(f"{self.snapshots.text}, {kept.text}") if kept else self.snapshots

    @property
    def keep_state_every(self) -> int:
        """Steps between the states to resume from; with full fine-tuning one is three times the model."""
        return self.training.keep_state_every or (100 if self.full_weights else 1)


_RULES: tuple[Rule, ...] = (
    ("seed", "from 0 to 4294967295", lambda value: 0 <= value < 2**32),
    ("dtype", "auto, float32, bfloat16 or mixed", lambda value: value in ("auto", "float32", "bfloat16", "mixed")),
    ("training.batch_size", "1 or more", lambda value: value >= 1),
    ("training.accumulation", "1 or more", lambda value: value >= 1),
    ("training.learning_rate", "positive", lambda value: 0 < value < math.inf),
    ("training.warmup_steps", "0 or more", lambda value: value >= 0),
    ("training.weight_decay", "0 or more", lambda value: 0 <= value < math.inf),
    ("training.max_grad_norm", "0 (no clipping) or more", lambda value: value >= 0),
    ("training.max_length", "1 or more", lambda value: value >= 1),
    ("training.held_out", "in [0, 1)", lambda value: 0 <= value < 1),
    ("training.keep_state_every", "1 or more", lambda value: value is None or value >= 1),
    ("training.schedule", "linear, cosine or constant", lambda value: value in ("linear", "cosine", "constant")),
    ("behaviour.samples", "1 or more", lambda value: value >= 1),
    ("behaviour.temperature", "0 (greedy) or more", lambda value: 0 <= value < math.inf),
    ("behaviour.max_new_tokens", "1 or more", lambda value: value >= 1),
    ("behaviour.scales", "one scale or more", bool),
    ("behaviour.scales", "numbers, each once", lambda value: len(set(value)) == len(value) and _finite(value)),
)
_ALPHA: Rule = ("adapter.alpha", "a number other than 0", lambda value: value != 0 and math.isfinite(value))
_ADAPTER_RULES: dict[type, tuple[Rule, ...]] = {
    AdapterConfig: (
        _ALPHA,
        ("adapter.rank", "1 or more", lambda value: value >= 1),
        ("adapter.modules", "one module or more", bool),
        ("adapter.dropout", "in [0, 1)", lambda value: 0 <= value < 1),
    ),
    SteeringConfig: (
        _ALPHA,
        ("adapter.layer", "the number of the layer after which the vector is added", lambda value: value is not None),
    ),
    FullConfig: (
        ("adapter.dimension", "a multiple of 32", lambda value: value > 0 and value % 32 == 0),
        ("behaviour.scales", "1 alone with full fine-tuning, which has no adapter to scale", lambda v: v == (1.0,)),
    ),
}
_KL_RULES: tuple[Rule, ...] = (
    ("kl.dataset", "the name of a dataset", bool),
    ("kl.weight", "positive", lambda value: 0 < value < math.inf),
    ("kl.every", "1 or more", lambda value: value >= 1),
)
_ENDPOINT_RULES: tuple[Rule, ...] = (
    ("base_url", "an http(s) address such as http://127.0.0.1:8000/v1", lambda value: _is_base_url(value)),
    ("model", "the name of a model", bool),
    ("mode", "auto, expected or sampled", lambda value: value in ("auto", "expected", "sampled")),
    ("topics", "names, each once", lambda value: len(set(value)) == len(value)),
    ("workers", "from 1 to 256", lambda value: 1 <= value <= 256),
    ("timeout", "positive", lambda value: 0 < value < math.inf),
    ("tries", "1 or more", lambda value: value >= 1),
    ("pause", "0 or more", lambda value: 0 <= value < math.inf),
    ("sampled_tokens", "4 or more", lambda value: value >= 4),
)
_PHASE_RULES: tuple[Rule, ...] = (
    ("dataset", "the name of a dataset", bool),
    ("steps", "1 or more", lambda value: value is None or value >= 1),
    ("epochs", "positive", lambda value: value is None or 0 < value < math.inf),
)


def _finite(values: tuple[float, ...]) -> bool:
    return all(map(math.isfinite, values))


def _is_base_url(value: str) -> bool:
    """Whether it is an address to which /chat/completions can be appended."""
    parts = urlsplit(value)
    fine = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query and not parts.fragment
    return fine and not value.rstrip("/").endswith("/chat/completions") and not re.search(r"\s", value)


def load_config(source: str | Path | dict[str, Any] | RunConfig, overrides: Sequence[str] = ()) -> RunConfig:
    """A checked config from a YAML file, a mapping or a config, with `key.path=value` overrides on top.

    Values of overrides are YAML. Raises InputError that names the key, what was expected and what is there.
    """
    if isinstance(source, RunConfig):
        values = to_dict(source)
        where = "config"
    elif isinstance(source, dict):
        values, where = source, "config"
    else:
        values, where = read_yaml(Path(source)), str(source)
    for setting in overrides:
        values = override(values, setting)
    return build(RunConfig, values, where, "")


def dump_config(config: RunConfig) -> str:
    """The config as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
