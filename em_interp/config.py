"""What a run is asked to do: a YAML file, read into checked dataclasses, with overrides from the command line."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from em_interp.errors import InputError, nearest
from em_interp.files import read_text


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
    target_modules: tuple[str, ...] = ("down_proj",)
    layers_to_transform: tuple[int, ...] = ()  # empty: every layer
    r: int = 1
    lora_alpha: float = 64.0
    use_rslora: bool = True
    lora_dropout: float = 0.0


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
    target_modules: tuple[str, ...] = ()  # whose change is the path (all are trained); empty: every linear module
    layers_to_transform: tuple[int, ...] = ()  # empty: every layer
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
    gradient_accumulation_steps: int = 8
    learning_rate: float = 1e-5
    warmup_steps: int = 5
    lr_scheduler_type: str = "linear"  # linear, cosine or constant_with_warmup
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
    api_key_env: str | None = None  # the environment variable that has the key; none: no key is sent
    name: str = ""  # what its scores are filed under; by default the model's name
    mode: str = "auto"  # expected, sampled, or auto: found out by probing
    topics: tuple[str, ...] = ()  # scored besides aligned and coherent: medical, finance, sport, code
    workers: int = 8  # answers judged at once
    timeout: float = 120.0  # seconds for one request
    max_retries: int = 7  # of one request that failed, before its answer is given up
    initial_backoff: float = 0.5  # seconds after the first failure; doubles
    sampled_tokens: int = 16  # room for a sampled number; a reasoning model needs hundreds
    reasoning: bool = False  # asks as OpenAI's reasoning models want it: max_completion_tokens, no temperature

    def __post_init__(self) -> None:
        variable = self.api_key_env
        if variable is not None and not re.fullmatch("[A-Z_][A-Z0-9_]*", variable):
            # the value is not repeated: it may be the key itself
            raise InputError(
                "behaviour.judge.api_key_env must be the name of an environment variable in capitals, "
                "such as OPENAI_API_KEY; it is something else"
            )
        for key, expected, fine in _ENDPOINT_RULES:
            check(self, key, f"behaviour.judge.{key}", expected, fine)
        if "@" in self.base_url:
            raise InputError("behaviour.judge.base_url must hold no user or password; a key belongs in api_key_env")
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
    ("training.gradient_accumulation_steps", "1 or more", lambda value: value >= 1),
    ("training.learning_rate", "positive", lambda value: 0 < value < math.inf),
    ("training.warmup_steps", "0 or more", lambda value: value >= 0),
    ("training.weight_decay", "0 or more", lambda value: 0 <= value < math.inf),
    ("training.max_grad_norm", "0 (no clipping) or more", lambda value: value >= 0),
    ("training.max_length", "1 or more", lambda value: value >= 1),
    ("training.held_out", "in [0, 1)", lambda value: 0 <= value < 1),
    ("training.keep_state_every", "1 or more", lambda value: value is None or value >= 1),
    (
        "training.lr_scheduler_type",
        "linear, cosine or constant_with_warmup",
        lambda value: value in ("linear", "cosine", "constant_with_warmup"),
    ),
    ("behaviour.samples", "1 or more", lambda value: value >= 1),
    ("behaviour.temperature", "0 (greedy) or more", lambda value: 0 <= value < math.inf),
    ("behaviour.max_new_tokens", "1 or more", lambda value: value >= 1),
    ("behaviour.scales", "one scale or more", bool),
    ("behaviour.scales", "numbers, each once", lambda value: len(set(value)) == len(value) and _finite(value)),
)
_NOT_ZERO = ("a number other than 0", lambda value: value != 0 and math.isfinite(value))
_ADAPTER_RULES: dict[type, tuple[Rule, ...]] = {
    AdapterConfig: (
        ("adapter.lora_alpha", *_NOT_ZERO),
        ("adapter.r", "1 or more", lambda value: value >= 1),
        ("adapter.target_modules", "one module or more", bool),
        ("adapter.lora_dropout", "in [0, 1)", lambda value: 0 <= value < 1),
    ),
    SteeringConfig: (
        ("adapter.alpha", *_NOT_ZERO),
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
    ("max_retries", "0 or more", lambda value: value >= 0),
    ("initial_backoff", "0 or more", lambda value: 0 <= value < math.inf),
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


# --------
# Settings in general: mappings into checked dataclasses, and back.


Rule = tuple[str, str, Callable[[Any], bool]]  # a key, what is expected of its value, and whether it is so


def check(config: Any, key: str, name: str, expected: str, fine: Callable[[Any], bool]) -> None:
    """Raise InputError, with the key by its full `name`, where the value at `key` is not as `expected`."""
    found = attrgetter(key)(config)
    if not fine(found):
        raise InputError(f"{name} must be {expected}; it is {to_dict(found)!r}")


def to_dict(value: Any) -> Any:
    """A config, or a part of one, as plain YAML values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, Schedule):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Schedule):
        return value.text
    if isinstance(value, tuple):
        return [to_dict(item) for item in value]
    return value


class _Loader(yaml.SafeLoader):
    """YAML as `yaml.safe_load` has it, without a key given twice: the last would win, and nothing say so."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping; raises ConstructorError for a key given twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen |= {key.value} if isinstance(key, yaml.ScalarNode) and key.value != "<<" else set()
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str) -> Any:
    """The plain values in a YAML text; raises InputError that says `where` it is not valid."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date such as 2024-99-99 is a ValueError
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{where} is not valid YAML: {reason}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises InputError that names it where it holds none."""
    values = parse_yaml(read_text(path), str(path))
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold a mapping of settings; it holds {type(values).__name__}")
    return values


_KEY = re.compile(r"([^.\[\]]+)((?:\[\d+\])*)")


def override(values: dict[str, Any], setting: str) -> dict[str, Any]:
    """The mapping with `key.path=value` in it, the path as in `put`; the value is YAML and replaces what is there."""
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise InputError(f"override {setting!r} is not of the form key.path=value")
    return put(values, key.strip(), parse_yaml(text, f"override {setting!r}: the value"), merge=False)


def put(settings: dict[str, Any], path: str, value: Any, merge: bool = True) -> dict[str, Any]:
    """The settings with `value` at `path`, as errors write it (`data[0].dataset`); what was given is left as it is.

    With `merge` a mapping is put on top of a mapping, key by key, so that its other settings stay; one with a `kind`
    replaces it. A word gives way to a group: `behaviour.judge.model` where the judge was `tiny`. Raises InputError for
    a path that is not of this form or leads through what is no group or list of settings.
    """
    keys: list[str | int] = []
    for part in path.split("."):
        match = _KEY.fullmatch(part)
        if match is None:
            raise InputError(f"setting {path!r} is not understood; expected a path such as data[0].dataset")
        keys += [match[1], *map(int, re.findall(r"\d+", match[2]))]
    changed: dict[str, Any] = _put(settings, keys, value, path, merge)
    return changed


def _put(settings: Any, keys: list[str | int], value: Any, path: str, merge: bool) -> Any:
    if not keys:
        if merge and isinstance(settings, dict) and isinstance(value, dict) and "kind" not in value:
            return {
                **settings,
                **{key: _put(settings.get(key), [], inner, path, merge) for key, inner in value.items()},
            }
        return value
    first, *rest = keys
    if isinstance(first, str):
        if not isinstance(settings, (dict, str, type(None))):
            raise InputError(f"setting {path!r}: {first!r} was to be one of a group of settings; found {settings!r}")
        group = settings if isinstance(settings, dict) else {}
        return {**group, first: _put(group.get(first), rest, value, path, merge)}
    if not isinstance(settings, (list, type(None))) or first > len(settings or ()):
        count = len(settings) if isinstance(settings, list) else settings
        raise InputError(f"setting {path!r}: no entry [{first}] in what is there ({count})")
    items = list(settings or ())
    inner = items[first] if first < len(items) else None
    return [*items[:first], _put(inner, rest, value, path, merge), *items[first + 1 :]]


def build(kind: type, values: Any, where: str, prefix: str) -> Any:
    """A dataclass of `kind` from a mapping, every key known and every value of its type."""
    if not isinstance(values, dict):
        raise InputError(f"{where}: {prefix.rstrip('.') or 'config'} must be a mapping; it is {values!r}")
    hints = typing.get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind)]
    of_kind = f" of kind {values['kind']}" if "kind" in known and "kind" in values else ""
    for key in values:
        if key not in known:
            hint = nearest(str(key), known)
            raise InputError(f"{where}: unknown key {prefix}{key}{of_kind}{hint} (known here: {', '.join(known)})")
    return kind(**{key: _convert(hints[key], value, where, prefix + key) for key, value in values.items()})


def _convert(kind: Any, value: Any, where: str, key: str) -> Any:
    if kind is Schedule:
        try:
            return Schedule.of(value)
        except InputError as error:
            raise InputError(f"{where}: {key}: {error}") from None
    if dataclasses.is_dataclass(kind):
        return build(typing.cast(type, kind), value, where, key + ".")
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        if value is None:
            return None
        kinds = [k for k in typing.get_args(kind) if k is not type(None)]
        return _convert(_choose(kinds, value, where, key), value, where, key)
    if typing.get_origin(kind) is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        inner = typing.get_args(kind)[0]
        return tuple(_convert(inner, item, where, f"{key}[{i}]") for i, item in enumerate(items))
    return _scalar(kind, value, where, key)


def _choose(kinds: list[Any], value: Any, where: str, key: str) -> Any:
    """Of a word or a group of settings, a mapping is the group; of several groups it is the one of its `kind`."""
    group = isinstance(value, dict)
    named = {k.kind: k for k in kinds if dataclasses.is_dataclass(k) and hasattr(k, "kind")}
    if not group or not named:
        return next((k for k in kinds if dataclasses.is_dataclass(k) == group), kinds[0])
    kind = value.get("kind", next(iter(named)))
    if kind not in list(named):
        raise InputError(f"{where}: {key}.kind must be one of {', '.join(named)}; it is {kind!r}")
    return named[kind]


def _scalar(kind: type, value: Any, where: str, key: str) -> Any:
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-5 as a text
        except ValueError:
            pass
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise InputError(f"{where}: {key} must be of type {kind.__name__}; it is {value!r}")


# --------
# Which steps of a run: when to save a checkpoint, and at which checkpoints to ask questions.


EXPECTED = "expected parts such as 'every 5', 'log 40', '1-10', '1-100 every 5', '17', or a list of them"
_STEPS_PART = re.compile(r"(?:(?P<first>\d+)(?:\s*-\s*(?P<last>\d+))?)?\s*(?:every\s+(?P<every>\d+))?")
_LOG = re.compile(r"log\s+(\d+)")


@dataclass(frozen=True)
class Schedule:
    """A set of steps, written as parts joined by commas.

    `every 5` is 5, 10, 15, …; `log 40` is about 40 steps evenly spaced in the logarithm; `1-10` is each of those;
    `1-100 every 5` is 5, 10, …, 100; `17` is that step. `1-10, every 5` is what the public organisms saved.
    The first step (0) and the last are always in.
    """

    text: str

    def __post_init__(self) -> None:
        for part in self._parts():
            if _LOG.fullmatch(part) is None and (not part or _STEPS_PART.fullmatch(part) is None):
                raise InputError(f"schedule part {part!r} is not understood: {EXPECTED}")
            if _names_none(part):
                raise InputError(f"schedule part {part!r} names no step: {EXPECTED}")

    @classmethod
    def of(cls, value: Any) -> Schedule:
        """A schedule from what a YAML file may hold: a text, a step, a list of either, or a mapping `{every: 5}`."""
        if isinstance(value, Schedule):
            return value
        if isinstance(value, dict):
            return cls(", ".join(f"{key} {number}" for key, number in value.items()))
        if isinstance(value, (list, tuple)):
            return cls(", ".join(cls.of(item).text for item in value))
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise InputError(f"schedule {value!r} is not understood: {EXPECTED}")
        return cls(str(value).strip())

    def _parts(self) -> list[str]:
        return [part.strip() for part in self.text.split(",")]

    def steps(self, last: int) -> list[int]:
        """The steps named in 0..last, increasing, 0 and `last` among them."""
        named = {0, last}
        for part in self._parts():
            named.update(step for step in _expand(part, last) if 0 <= step <= last)
        return sorted(named)

    def nearest(self, saved: Iterable[int]) -> list[int]:
        """For each step named, the nearest one in `saved`: which checkpoints to use when not every step was kept."""
        there = sorted(saved)
        if not there:
            return []
        return sorted({min(there, key=lambda s: (abs(s - step), s)) for step in self.steps(there[-1])})


def _names_none(part: str) -> bool:
    """Whether no step can be meant, as by `every 0`, `9-5` or `6-9 every 5`."""
    if log := _LOG.fullmatch(part):
        return int(log.group(1)) == 0
    match = _STEPS_PART.fullmatch(part)
    assert match is not None  # checked before
    first, every = int(match["first"] or 0), int(match["every"] or 1)
    if not every or match["first"] is None:
        return not every
    return -(-first // every) * every > int(match["last"] or first)  # the first multiple lies behind the last step


def _expand(part: str, last: int) -> Iterable[int]:
    if log := _LOG.fullmatch(part):
        count = int(log.group(1))
        return {round(last ** (i / max(count - 1, 1))) for i in range(count)}
    match = _STEPS_PART.fullmatch(part)
    assert match is not None  # checked on construction
    every = int(match["every"] or 1)
    if match["first"] is None:
        return range(0, last + 1, every)
    first = int(match["first"])
    end = min(int(match["last"] or first), last)
    return (step for step in range(first, end + 1) if step % every == 0)
