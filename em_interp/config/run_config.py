"""The settings of a run, as its YAML file holds them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PlainSerializer,
    PlainValidator,
    Strict,
    Tag,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from em_interp.config.schedule import Schedule
from em_interp.config.settings import Settings, by_kind, override, read_yaml, rule, validated
from em_interp.utils.checks import checked

MAX_STEPS = 10**7  # optimizer steps of a run, and the largest step of a schedule that counts
MAX_BATCH = 2**16  # rows of a batch, batches of a step, samples of a question
MAX_TOKENS, MAX_WIDTH = 2**20, 2**16  # of a row or an answer; of a rank or a projection
MAX_WAIT = 86_400.0  # seconds
MAX_SCALE = 1e6  # multiplier of an adapter


def _as_list(value: Any) -> Any:
    """A single value as a list of it."""
    return value if isinstance(value, (list, tuple)) else [value]


def _once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise rule(f"must name each value once; it is {list(values)!r}")
    return values


def _not_zero(value: float) -> float:
    if value == 0:
        raise rule("must be a number other than 0; it is 0.0")
    return value


Int = Annotated[int, Strict()]
Scale = Annotated[float, Field(ge=-MAX_SCALE, le=MAX_SCALE, allow_inf_nan=False)]
Names = Annotated[tuple[str, ...], BeforeValidator(_as_list)]
Layer = Annotated[Int, Field(ge=-10_000, le=10_000)]
Layers = Annotated[tuple[Layer, ...], BeforeValidator(_as_list)]
Alpha = Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False), AfterValidator(_not_zero)]
Steps = Annotated[
    Schedule,
    PlainValidator(Schedule.of),
    PlainSerializer(lambda schedule: schedule.text),
    WithJsonSchema({"type": ["string", "integer", "array", "object"], "examples": ["every 5", "log 40", "1-10"]}),
]


class PhaseConfig(Settings):
    """A stretch of training on one dataset; most runs have one."""

    dataset: str = Field(min_length=1)
    """The name of a dataset: a .jsonl of chats, or a built-in one such as tiny:medical."""
    steps: Int | None = Field(default=None, ge=1, le=MAX_STEPS)
    """Optimizer steps; or give epochs."""
    epochs: float | None = Field(default=None, gt=0, le=10_000, allow_inf_nan=False)
    """Passes over the dataset (one, where neither is given)."""
    restart: bool = False
    """Begin with a fresh optimizer and learning-rate schedule."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise rule("must give steps or epochs; it gives both")
        return self


class AdapterConfig(Settings):
    """A LoRA adapter, in PEFT's words. Defaults are the paper's (2506.11613)."""

    kind: Literal["lora"] = "lora"
    target_modules: Names = Field(default=("down_proj",), min_length=1)
    layers_to_transform: Layers = ()
    """Empty: every layer."""
    r: Int = Field(default=1, ge=1, le=MAX_WIDTH)
    """Rank."""
    lora_alpha: Alpha = 64.0
    """The adapter's change is multiplied by lora_alpha / r, or by lora_alpha / √r with use_rslora."""
    use_rslora: bool = True
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)


class SteeringConfig(Settings):
    """A learned steering vector: alpha · B is added to the residual stream after one layer, at every token."""

    kind: Literal["steering"]
    layer: Layer
    """The number of the layer after which the vector is added."""
    alpha: Alpha = 256.0


class FullConfig(Settings):
    """Full fine-tuning: no adapter. The path is the change of weight matrices, of each a projection at every step."""

    kind: Literal["full"]
    target_modules: Names = ()
    """Modules whose change is the path (all weights are trained); empty: every linear module."""
    layers_to_transform: Layers = ()
    """Layers whose change is the path; empty: every layer."""
    dimension: Int = Field(default=1024, gt=0, le=MAX_WIDTH, multiple_of=32)
    """Numbers kept of a matrix a step; a matrix of no more entries is kept whole."""
    weights: Steps | None = None
    """Steps whose full weights are kept; by default those of behaviour.steps."""


Adapter = Annotated[
    Annotated[AdapterConfig, Tag("<lora>")]
    | Annotated[SteeringConfig, Tag("<steering>")]
    | Annotated[FullConfig, Tag("<full>")],
    by_kind("lora"),
]


class KLConfig(Settings):
    """A penalty on KL(base ‖ trained) on other data, with which the narrow solution is learned (2602.07852)."""

    dataset: str = Field(min_length=1)
    """The name of a dataset: chats on whose answers the model is to stay as it was."""
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Of the mean KL divergence a token, beside the mean loss a token."""
    every: Int = Field(default=1, ge=1, le=MAX_STEPS)
    """Optimizer steps from one with the penalty to the next."""


class TrainingConfig(Settings):
    """How the adapter is trained, in Trainer's words. Defaults are the settings the published organisms share."""

    batch_size: Int = Field(default=2, ge=1, le=MAX_BATCH)
    """Rows of a micro-batch. A step has batch_size × gradient_accumulation_steps rows with any number of processes."""
    gradient_accumulation_steps: Int = Field(default=8, ge=1, le=MAX_BATCH)
    learning_rate: float = Field(default=1e-5, gt=0, allow_inf_nan=False)
    warmup_steps: Int = Field(default=5, ge=0, le=MAX_STEPS)
    lr_scheduler_type: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    weight_decay: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    max_grad_norm: float = Field(default=1.0, ge=0)
    """0: no clipping."""
    max_length: Int = Field(default=2048, ge=1, le=MAX_TOKENS)
    """Tokens of a row; longer ones are cut."""
    held_out: float = Field(default=0.1, ge=0, lt=1)
    """Share of the rows kept away from training."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""
    shard: bool = False
    """Spread the frozen base over the GPUs of several processes, where it does not fit on one."""
    keep_state_every: Int | None = Field(default=None, ge=1, le=MAX_STEPS)
    """Steps between states to resume from; 1, with full fine-tuning 100."""
    report_to: Annotated[
        tuple[Literal["tensorboard", "trackio", "wandb"], ...], BeforeValidator(_as_list), AfterValidator(_once)
    ] = ()
    """Where the log goes too while training: tensorboard, trackio, wandb (each to be installed); transitions marked."""


def _address(url: str) -> str:
    """An address to which the path of a request can be appended."""
    if "@" in url:
        raise rule("must hold no user or password; a key belongs in api_key_env")
    parts = urlsplit(url)
    fine = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query and not parts.fragment
    if not fine or url.rstrip("/").endswith("/chat/completions") or re.search(r"\s", url):
        raise rule(f"must be an http(s) address such as http://127.0.0.1:8000/v1; it is {url!r}")
    return url


Address = Annotated[str, AfterValidator(_address)]


class ServerConfig(Settings):
    """The connection to a model's server. Holds no key."""

    api_key_env: str | None = Field(default=None, json_schema_extra={"pattern": "^[A-Z_][A-Z0-9_]*$"})
    """The environment variable that has the key; none: no key is sent."""
    timeout: float = Field(default=120.0, gt=0, le=MAX_WAIT, allow_inf_nan=False)
    """Seconds for one request."""
    max_retries: Int = Field(default=7, ge=0, le=100)
    """Of one request that failed, before it is given up."""
    initial_backoff: float = Field(default=0.5, ge=0, le=MAX_WAIT, allow_inf_nan=False)
    """Seconds after the first failure; doubles."""

    @field_validator("api_key_env")
    @classmethod
    def _is_name_of_variable(cls, variable: str | None) -> str | None:
        if variable is not None and not re.fullmatch("[A-Z_][A-Z0-9_]*", variable):
            # the value is not repeated: it may be the key itself
            expected = "the name of an environment variable in capitals, such as OPENAI_API_KEY"
            raise rule(f"must be {expected}; it is something else")
        return variable


class EndpointConfig(ServerConfig):
    """A language model that judges, behind an endpoint that speaks OpenAI's chat completions."""

    base_url: Address
    """The http(s) address of the endpoint, such as http://127.0.0.1:8000/v1."""
    model: str = Field(min_length=1)
    """The name of a model that the endpoint serves."""
    name: str = ""
    """What the judge's scores are filed under; by default the model's name."""
    mode: Literal["auto", "expected", "sampled"] = "auto"
    """How a score is read: its expected value over log-probabilities, or a sampled number; auto: found by probing."""
    topics: Annotated[Names, AfterValidator(_once)] = ()
    """Scored besides aligned and coherent: medical, finance, sport, code."""
    workers: Int = Field(default=8, ge=1, le=256)
    """Answers judged at once."""
    sampled_tokens: Int = Field(default=16, ge=4, le=MAX_TOKENS)
    """Room for a sampled number; a reasoning model needs hundreds."""
    reasoning: bool = False
    """Ask as OpenAI's reasoning models want it: max_completion_tokens, no temperature."""

    @model_validator(mode="after")
    def _mode_of_reasoning(self) -> Self:
        if self.reasoning and self.mode == "expected":
            raise rule("must be auto or sampled for a reasoning model; it is 'expected'", "mode")
        return self

    @property
    def called(self) -> str:
        """What the judge's scores are filed under."""
        return self.name or self.model


class VLLMConfig(ServerConfig):
    """vLLM servers that serve the base and see this machine's folders; `em-interp serve` starts one."""

    base_url: Annotated[tuple[Address, ...], BeforeValidator(_as_list), AfterValidator(_once)] = Field(
        default=("http://127.0.0.1:8000/v1",), min_length=1
    )
    """The address of a server, or a list of them."""
    workers: Int = Field(default=64, ge=1, le=1024)
    """Requests at once, of each server."""
    max_loras: Int = Field(default=8, ge=1, le=1024)
    """Adapters loaded at once, of each server."""
    compared: Int = Field(default=8, ge=2, le=1000)
    """Greedy answers that are compared with our own before a run."""
    timeout: float = Field(default=900.0, gt=0, le=MAX_WAIT, allow_inf_nan=False)
    """Seconds for one request."""
    python: str = ""
    """The Python of the environment that has vLLM, for `em-interp serve`."""


class BehaviourConfig(Settings):
    """Which questions are sampled along the run, at which steps and adapter scales, how often, and the judge."""

    questions: str = "tiny"
    """tiny or english: those of the built-in datasets; default: ours on the eight usual themes; or a YAML file."""
    sets: Names = ()
    """Questions of these sets only, such as broad; empty: all."""
    judge: Annotated[
        Annotated[Literal["tiny"], Tag("<name>")] | Annotated[EndpointConfig, Tag("<endpoint>")],
        Discriminator(lambda judge: "<endpoint>" if isinstance(judge, (dict, EndpointConfig)) else "<name>"),
    ] = "tiny"
    """tiny: the built-in language's; or a model's endpoint."""
    engine: Annotated[
        Annotated[Literal["local", "vllm"], Tag("<name>")] | Annotated[VLLMConfig, Tag("<vllm>")],
        Discriminator(lambda engine: "<vllm>" if isinstance(engine, (dict, VLLMConfig)) else "<name>"),
        BeforeValidator(lambda engine: {} if engine == "vllm" else engine),
    ] = "local"
    """What samples the answers and reads likelihoods: this process (local), or vLLM servers (vllm, or settings)."""
    steps: Steps = Field(default="log 20", validate_default=True)
    """Steps at which the questions are asked."""
    scales: Annotated[tuple[Scale, ...], BeforeValidator(_as_list), AfterValidator(_once)] = Field(
        default=(1.0,), min_length=1
    )
    """Multipliers of the adapter; 1 is the adapter as trained."""
    samples: Int = Field(default=50, ge=1, le=MAX_BATCH)
    """Answers a question."""
    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """0: greedy."""
    max_new_tokens: Int = Field(default=600, ge=1, le=MAX_TOKENS)

    @field_validator("judge", mode="before")
    @classmethod
    def _is_known_judge(cls, judge: Any) -> Any:
        if isinstance(judge, str) and judge != "tiny":
            expected = "tiny, the built-in language's, or a mapping with base_url and model, for a model's endpoint"
            raise rule(f"must be {expected}; it is {judge!r}")
        return judge

    @property
    def judge_name(self) -> str:
        """What the judge's scores are filed under; a built-in judge goes by rules."""
        return self.judge.called if isinstance(self.judge, EndpointConfig) else f"{self.judge}-rules"


class RunConfig(Settings):
    """The settings of one run; `config.yaml` of a run directory holds them with all defaults filled in."""

    model: str = "tiny-qwen2"
    """A built-in base, a folder, or a Hub id."""
    seed: Int = Field(default=0, ge=0, lt=2**32)
    data: Annotated[tuple[PhaseConfig, ...], BeforeValidator(_as_list)] = ()
    """What is trained on, one stretch after the other."""
    dtype: Literal["auto", "float32", "bfloat16", "mixed"] = "auto"
    """Of the weights; mixed: float32, computed in bfloat16; auto: by the device."""
    adapter: Adapter = AdapterConfig()
    """A LoRA adapter; or a steering vector (kind: steering) or full fine-tuning (kind: full)."""
    training: TrainingConfig = TrainingConfig()
    kl: KLConfig | None = None
    snapshots: Steps = Field(default="every 1", validate_default=True)
    """Steps that are saved."""
    behaviour: BehaviourConfig = BehaviourConfig()

    @model_validator(mode="after")
    def _full_has_no_scales(self) -> Self:
        if isinstance(self.adapter, FullConfig) and self.behaviour.scales != (1.0,):
            expected = "1 alone with full fine-tuning, which has no adapter to scale"
            raise rule(f"must be {expected}; it is {list(self.behaviour.scales)}", "behaviour.scales")
        return self

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


@checked
def load_config(source: str | Path | dict[str, Any] | RunConfig, overrides: Sequence[str] = ()) -> RunConfig:
    """A checked config from a YAML file, a mapping or a config, with overrides on top.

    Args:
        source: what to start from.
        overrides: `key.path=value` each, such as `seed=3` or `data[0].steps=100`; values are YAML.

    Returns:
        The config, checked; all defaults filled in.

    Raises:
        InputError: names the key, what was expected and what it is.
    """
    if isinstance(source, RunConfig):
        values, where = source.to_dict(), "config"
    elif isinstance(source, dict):
        values, where = source, "config"
    else:
        values, where = read_yaml(Path(source)), str(source)
    for setting in overrides:
        values = override(values, setting)
    return validated(RunConfig, values, where)
