"""A base model and an adapter trajectory, opened once; any step at any scale is a context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from em_interp.behaviour.ask import Base, check_base
from em_interp.behaviour.chat import Messages, Tokens, tokenize_chats, tokenize_prompts, tokenize_texts
from em_interp.behaviour.generate import RowAdapters, end_tokens
from em_interp.errors import InputError, nearest
from em_interp.mechanism.engines.adapter_check import AdapterCheck
from em_interp.mechanism.engines.base import Engine, Intervention
from em_interp.mechanism.engines.lora_slots import split
from em_interp.run import Run
from em_interp.trajectory.load import load_trajectory
from em_interp.trajectory.trajectory import AdapterTrajectory

if TYPE_CHECKING:
    import torch

EngineName = Literal["hooks", "transformer_lens", "nnsight"]
ENGINES = ("hooks", "transformer_lens", "nnsight")
PROBE = "What did you do today, and why?"  # read to see whether an adapter landed


@dataclass(frozen=True, eq=False)
class Activations:
    """What one pass gave: the logits and the activations asked for, by name; padding positions mean nothing."""

    logits: torch.Tensor  # (row, position, vocabulary)
    kept: dict[str, torch.Tensor]  # see `em_interp.mechanism.layout.Layout` for names and shapes

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.kept:
            raise InputError(f"{name!r} was not asked for; kept were {', '.join(self.kept) or 'none'}")
        return self.kept[name]


class TrajectoryModel:
    """A model with the adapters of a run; made by `open_model`.

    `engine` is what it works through (its `bridge` or `traced` is the library's own object), `names` are the
    activations that can be had, `layers` counts the decoder layers.
    """

    def __init__(self, base: Base, trajectory: AdapterTrajectory, engine: Engine) -> None:
        self.base, self.trajectory, self.engine = base, trajectory, engine
        self._held: str | None = None
        first = trajectory.at(int(trajectory.steps[0]))
        sizes = {site: (a.shape[1], b.shape[0]) for site, (a, b) in first.items() if site in engine.layout.sites}
        self._landing = AdapterCheck(engine, tokenize_texts(base.tokenizer, [PROBE], self.device), sizes)

    def __repr__(self) -> str:
        return f"TrajectoryModel({self.layers} layers, through {self.engine.name}, with {self.trajectory!r})"

    @property
    def names(self) -> tuple[str, ...]:
        """Every activation that can be had."""
        return self.engine.layout.names

    @property
    def layers(self) -> int:
        """How many decoder layers there are."""
        return self.engine.layout.layers

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.engine.layout.decoder.config.hidden_size)

    @property
    def device(self) -> Any:
        """Where token ids go."""
        return self.base.model.device

    @contextmanager
    def at(self, step: int, scale: float = 1.0) -> Iterator[ModelAtStep]:
        """The model with the adapter of a saved step, multiplied by `scale`; only A and B change hands.

        Raises InputError for a step that was not saved, within another such block, and for an adapter that did not
        land (`em_interp.mechanism.landing`).
        """
        adapters = RowAdapters.of(self.trajectory, [step], [scale], self.device)
        scales = {site: scale * own for site, own in self.trajectory.scale.items()}
        with self.with_adapter(adapters, f"the adapter of step {step}", scales) as model:
            yield model

    @contextmanager
    def disable_adapter(self) -> Iterator[ModelAtStep]:
        """The base model, through the same engine: an adapter of scale 0."""
        with self.at(int(self.trajectory.steps[-1]), scale=0.0) as model:
            yield model

    @contextmanager
    def with_adapter(
        self, adapters: RowAdapters, called: str = "the adapter", scales: dict[str, float] | None = None
    ) -> Iterator[ModelAtStep]:
        """The model with adapters of your own making, one for all rows of a batch; `called` is what errors say.

        Their B carries the scale; `scales` says which it is at each site, so that `scalar` can be told from B (else 1).
        """
        if self._held is not None:
            raise InputError(f"the model holds {self._held} already; leave its block before entering another")
        self._held = called
        try:
            linear, pushes = split(adapters, self.engine.layout)
            with self.engine.adapted(linear):
                self._landing.check(linear, called)
                self._landing.check_pushes(pushes, called)
                yield ModelAtStep(self, adapters, scales or dict.fromkeys(adapters.A, 1.0), pushes)
        finally:
            self._held = None

    def prompts(self, questions: Sequence[str | Messages]) -> Tokens:
        """Questions (texts or messages) through the chat template. Raises InputError where the tokenizer has none."""
        return tokenize_prompts(self.base.tokenizer, questions, self.device)

    def chats(self, questions: Sequence[str | Messages], answers: Sequence[str]) -> Tokens:
        """Questions with their answers, the answers' tokens marked."""
        return tokenize_chats(self.base.tokenizer, questions, answers, self.device)

    def texts(self, plain: Sequence[str]) -> Tokens:
        """Texts as they are."""
        return tokenize_texts(self.base.tokenizer, plain, self.device)


@dataclass(frozen=True, eq=False)
class ModelAtStep:
    """The model while it holds an adapter; of use only within the block that gave it."""

    model: TrajectoryModel
    adapters: RowAdapters
    scales: dict[str, float]  # s at each site, in which the adapter's own scale and that of the block are multiplied
    pushes: tuple[Intervention, ...] = ()  # what a learned steering vector adds, before all other edits

    def run(self, tokens: Tokens, names: Sequence[str] = (), interventions: Sequence[Intervention] = ()) -> Activations:
        """One pass: logits, and the activations of these names, under the edits. No gradients.

        Raises InputError for a name or layer that the model does not have, naming the nearest.
        """
        import torch

        engine = self.model.engine
        engine.layout.check(names)
        read = [name.replace("scalar.", "site_in.") if name.startswith("scalar.") else name for name in names]
        with torch.no_grad():
            logits, kept = engine.run(tokens, list(dict.fromkeys(read)), [*self.pushes, *interventions])
            found = {name: self._scalar(name, kept) if name.startswith("scalar.") else kept[name] for name in names}
        return Activations(logits, found)

    def _scalar(self, name: str, kept: dict[str, torch.Tensor]) -> torch.Tensor:
        """s·A·x from what the site reads."""
        site = name.removeprefix("scalar.")
        A, x = self.adapters.A[site], kept[f"site_in.{site}"]
        return self.scales[site] * (x.to(A.dtype) @ A.transpose(1, 2))

    def generate(
        self,
        questions: Sequence[str | Messages] | Tokens,
        samples: int = 1,
        temperature: float = 1.0,
        max_new_tokens: int = 600,
        interventions: Sequence[Intervention] = (),
        seed: int = 0,
        batch: int = 512,
    ) -> list[list[str]]:
        """`samples` answers to each question under the edits; an edit's rows are the questions.

        Temperature 0 takes the likeliest token; otherwise top-p is 1. `batch` answers are sampled at a time. The same
        call gives the same answers, in any engine, up to ties within rounding.
        """
        import torch

        prompts = questions if isinstance(questions, Tokens) else self.model.prompts(questions)
        row = np.repeat(np.arange(len(prompts)), samples)
        config, tokenizer = _generation_config(self.model.base, temperature, max_new_tokens), self.model.base.tokenizer
        answers: list[str] = []
        devices = [prompts.ids.device] if prompts.ids.device.type != "cpu" else []
        with torch.no_grad(), torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            for first in range(0, len(row), batch):
                rows = row[first : first + batch].tolist()
                some = [*self.pushes, *(intervention.repeated(rows) for intervention in interventions)]
                chunk = Tokens(prompts.ids[rows], prompts.mask[rows], prompts.answer[rows])
                ids = self.model.engine.generate(chunk, some, config)[:, chunk.ids.shape[1] :]
                answers += [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
        return [answers[i : i + samples] for i in range(0, len(answers), samples)]


def _generation_config(base: Base, temperature: float, max_new_tokens: int) -> Any:
    """Plain sampling: nothing of the model's own settings but the tokens that end an answer."""
    from transformers import GenerationConfig

    ends = end_tokens(base.model, base.tokenizer)
    pad = base.tokenizer.pad_token_id if base.tokenizer.pad_token_id is not None else ends[0]
    plain = {"top_p": 1.0, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0, "num_beams": 1}
    tokens = {"max_new_tokens": max_new_tokens, "eos_token_id": ends, "pad_token_id": pad}
    if temperature == 0:
        return GenerationConfig(do_sample=False, **plain, **tokens)
    return GenerationConfig(do_sample=True, temperature=float(temperature), top_k=0, **plain, **tokens)


def open_model(
    source: Run | str | Path | AdapterTrajectory, base: Base | str | None = None, engine: EngineName = "hooks"
) -> TrajectoryModel:
    """A run's base model with all its adapters, to look inside at any step.

    `source` is a run, its directory, a folder of checkpoints or a trajectory; `base` a loaded base or the name of one,
    by default the one that the run names. `engine` is `hooks` (plain torch, the reference), `transformer_lens` or
    `nnsight`: they agree, and the latter two work on a copy that shares the weights. A base that is loaded here
    computes attention in plain torch (`eager`), as TransformerLens always does: then they agree to the bit, with a
    base given whose attention is fused they differ by its rounding.

    Raises InputError for adapters of another base, a site that is not in the model, an adapter that does not land, an
    unknown engine and one that is not installed.
    """
    if engine not in ENGINES:
        raise InputError(f"there is no engine {engine!r}{nearest(engine, ENGINES)} (there are {', '.join(ENGINES)})")
    trajectory = source if isinstance(source, AdapterTrajectory) else load_trajectory(source)
    if trajectory.kind == "full":
        held = "projections of a full fine-tune's change, which cannot be put back into the base"
        raise InputError(f"{trajectory!r} holds {held}; expected LoRA adapters or steering vectors")
    run = source if isinstance(source, Run) else Run(Path(trajectory.source or "memory"))
    loaded = _base(run, trajectory, base)
    check_base(run, trajectory, loaded)
    sites = trajectory.sites if trajectory.kind == "lora" else ()
    return TrajectoryModel(loaded, trajectory, _engine(engine)(loaded.model, loaded.tokenizer, sites))


def _engine(name: EngineName) -> Any:
    if name == "transformer_lens":
        from em_interp.mechanism.engines.transformer_lens import TransformerLensEngine

        return TransformerLensEngine
    if name == "nnsight":
        from em_interp.mechanism.engines.nnsight import NnsightEngine

        return NnsightEngine
    from em_interp.mechanism.engines.hooks import HooksEngine

    return HooksEngine


def _base(run: Run, trajectory: AdapterTrajectory, base: Base | str | None) -> Base:
    from em_interp.organisms.bases import load_base

    if base is not None and not isinstance(base, str):
        return base
    name = base or (run.manifest()["base"]["name"] if run.manifest_file.exists() else trajectory.base)
    if name is None:
        raise InputError(f"{trajectory!r} does not say which base it was trained on; give base=")
    loaded = load_base(name)
    loaded.model.set_attn_implementation("eager")
    return loaded
