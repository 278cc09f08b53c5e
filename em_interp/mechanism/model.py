"""A base model and the adapters of a run, opened once; the model at any step and adapter scale is a context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from em_interp.behaviour.sampling.chat import Messages, Tokens, tokenize_chats, tokenize_prompts, tokenize_texts
from em_interp.behaviour.sampling.checkpoint_models import Base, check_base
from em_interp.behaviour.sampling.decode import RowModel
from em_interp.behaviour.sampling.generate import RowAdapters, Sampler, decode_answers
from em_interp.errors import InputError
from em_interp.mechanism.engines.adapter_check import AdapterCheck
from em_interp.mechanism.engines.base import Engine
from em_interp.mechanism.engines.interventions import ActiveInterventions, Intervention
from em_interp.mechanism.engines.lora_slots import split_steering_vectors
from em_interp.run import Run
from em_interp.trajectory.load import TrajectorySource, as_trajectory, source_run
from em_interp.trajectory.trajectory import AdapterTrajectory
from em_interp.utils.checks import check_known, checked

if TYPE_CHECKING:
    import torch

EngineName = Literal["hooks", "transformer_lens", "nnsight"]
ENGINES = ("hooks", "transformer_lens", "nnsight")
CHECK_TEXT = "What did you do today, and why?"  # read to check that an adapter is in effect


class TrajectoryModel:
    """A base model with the adapters of a run; made by `open_model`.

    Attributes:
        base: the base model and its tokenizer.
        trajectory: the adapters, by step.
        engine: the engine; its `bridge` (TransformerLens) or `traced` (nnsight) is the library's own object.
        run: the run that the adapters are of; for a trajectory in memory a run directory that does not exist.
    """

    def __init__(self, base: Base, trajectory: AdapterTrajectory, engine: Engine, run: Run | None = None) -> None:
        self.base, self.trajectory, self.engine = base, trajectory, engine
        self.run = run or Run(Path(trajectory.source or "memory"))
        self._active: str | None = None
        first, sites = trajectory.at(int(trajectory.steps[0])), engine.hook_points.sites
        sizes = {site: (a.shape[1], b.shape[0]) for site, (a, b) in first.items() if site in sites}
        self._check = AdapterCheck(engine, tokenize_texts(base.tokenizer, [CHECK_TEXT], self.device), sizes)

    def __repr__(self) -> str:
        return f"TrajectoryModel({self.layers} layers, through {self.engine.name}, with {self.trajectory!r})"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all activations (`em_interp.mechanism.engines.base.HookPoints` explains them)."""
        return self.engine.hook_points.names

    @property
    def layers(self) -> int:
        """The number of decoder layers."""
        return self.engine.hook_points.layers

    @property
    def d_model(self) -> int:
        """The width of the residual stream."""
        return int(self.engine.hook_points.decoder.config.hidden_size)

    @property
    def device(self) -> Any:
        """The device of the model."""
        return self.base.model.device

    @property
    def last_step(self) -> int:
        """The last saved step."""
        return int(self.trajectory.steps[-1])

    @contextmanager
    def at(self, step: int, scale: float = 1.0) -> Iterator[ModelAtStep]:
        """The model with the adapter of a saved step, multiplied by `scale`; only A and B are exchanged.

        Args:
            step: a saved step.
            scale: adapter scale; 1 is the adapter as trained, 0 the base.

        Raises:
            InputError: for a step that was not saved, inside another such block, and for an adapter that is not in
                effect (`em_interp.mechanism.engines.adapter_check`).
        """
        adapters = RowAdapters.of(self.trajectory, [step], [scale], self.device)
        scales = {site: scale * own for site, own in self.trajectory.scale.items()}
        with self.with_adapter(adapters, f"the adapter of step {step}", scales) as model:
            yield model

    @contextmanager
    def disable_adapter(self) -> Iterator[ModelAtStep]:
        """The base model, through the same engine: an adapter of scale 0."""
        with self.at(self.last_step, scale=0.0) as model:
            yield model

    @contextmanager
    def with_adapter(
        self, adapters: RowAdapters, name: str = "the adapter", scales: dict[str, float] | None = None
    ) -> Iterator[ModelAtStep]:
        """The model with any adapters of the trajectory's sites, one for all rows of a batch.

        Args:
            adapters: their B includes the scale.
            name: the adapter's name in error messages.
            scales: the scale that B includes at each site, for the activation `scalar`; by default 1.
        """
        if self._active is not None:
            raise InputError(f"the model has {self._active} already; leave its block before you enter another")
        self._active = name
        try:
            linear, steering_vectors = split_steering_vectors(adapters, self.engine.hook_points)
            with self.engine.with_adapter(linear):
                self._check.check(linear, name)
                self._check.check_steering_vectors(steering_vectors, name)
                yield ModelAtStep(self, adapters, scales or dict.fromkeys(adapters.A, 1.0), steering_vectors)
        finally:
            self._active = None

    @checked
    def prompts(self, questions: Sequence[str | Messages]) -> Tokens:
        """Questions (texts or messages) as tokens, through the chat template, up to where the answer begins."""
        return tokenize_prompts(self.base.tokenizer, questions, self.device)

    @checked
    def chats(self, questions: Sequence[str | Messages], answers: Sequence[str]) -> Tokens:
        """Questions with their answers as tokens, through the chat template; the answers' tokens are marked."""
        return tokenize_chats(self.base.tokenizer, questions, answers, self.device)

    @checked
    def texts(self, plain: Sequence[str]) -> Tokens:
        """Plain texts as tokens, without the chat template."""
        return tokenize_texts(self.base.tokenizer, plain, self.device)


@dataclass(frozen=True, eq=False, repr=False)
class Activations:
    """The logits and the activations of one forward pass, by name; those at padding positions are undefined."""

    logits: torch.Tensor  # (row, position, vocabulary)
    kept: dict[str, torch.Tensor]  # by name; see `em_interp.mechanism.engines.base.HookPoints` for the shapes

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.kept:
            raise InputError(f"{name!r} was not requested; kept were {', '.join(self.kept) or 'none'}")
        return self.kept[name]

    def __repr__(self) -> str:
        shapes = (f"{name} {tuple(kept.shape)}" for name, kept in {"logits": self.logits, **self.kept}.items())
        return f"Activations({', '.join(shapes)})"


@dataclass(frozen=True, eq=False, repr=False)
class ModelAtStep:
    """The model with an adapter, as `TrajectoryModel.at` yields it; valid only within that `with` block."""

    model: TrajectoryModel
    adapters: RowAdapters
    scales: dict[str, float]  # s at each site: the adapter's own scale times that of the block
    steering_vectors: tuple[Intervention, ...] = ()  # learned ones, added before all other interventions

    def __repr__(self) -> str:
        return f"ModelAtStep({self.model._active or 'its block was left'}, in {self.model!r})"

    @checked
    def run(
        self,
        tokens: Tokens,
        names: Sequence[str] = (),
        interventions: Sequence[Intervention] = (),
        logits_to_keep: int = 0,
    ) -> Activations:
        """Logits, and the activations of these names, of one forward pass under the interventions. No gradients.

        Args:
            tokens: prompts, chats or texts.
            names: names of activations to keep, among `TrajectoryModel.names`.
            interventions: changes of the residual stream.
            logits_to_keep: positions, from the last one back, whose logits are computed; 0: all. Those of a large
                vocabulary take more memory than all else.

        Returns:
            `.logits`, of shape (row, position, vocabulary), and each activation by its name.

        Raises:
            InputError: for a name or layer that the model does not have, with the nearest.
        """
        import torch

        engine = self.model.engine
        engine.hook_points.check(names)
        read = [name.replace("scalar.", "site_in.") if name.startswith("scalar.") else name for name in names]
        with torch.no_grad():
            changes = [*self.steering_vectors, *interventions]
            logits, kept = engine.run(tokens, list(dict.fromkeys(read)), changes, logits_to_keep)
            activations = {
                name: self._scalar(name, kept) if name.startswith("scalar.") else kept[name] for name in names
            }
        return Activations(logits, activations)

    def _scalar(self, name: str, kept: dict[str, torch.Tensor]) -> torch.Tensor:
        """s·A·x from the input of the site."""
        site = name.removeprefix("scalar.")
        A, x = self.adapters.A[site], kept[f"site_in.{site}"]
        return self.scales[site] * (x.to(A.dtype) @ A.transpose(1, 2))

    @checked
    def generate(
        self,
        questions: Sequence[str | Messages] | Tokens,
        samples: int = 1,
        temperature: float = 1.0,
        max_new_tokens: int = 600,
        interventions: Sequence[Intervention] = (),
        seed: int = 0,
        batch: int | None = None,
    ) -> list[list[str]]:
        """`samples` answers to each question under the interventions, whose rows are the questions.

        The same call gives the same answers, in any engine and in any batches, up to ties within rounding.

        Args:
            questions: texts, messages or prompts as tokens.
            samples: answers to each question.
            temperature: 0 takes the likeliest token; otherwise top-p is 1.
            max_new_tokens: largest number of tokens of an answer.
            interventions: changes of the residual stream.
            seed: random seed of the sampling.
            batch: the most answers at once; by default as many as fit in memory.

        Returns:
            For each question the texts of its answers.

        Raises:
            InputError: for an intervention of another size, at a layer that the model does not have, or without effect.
        """
        base = self.model.base
        prompts = questions if isinstance(questions, Tokens) else self.model.prompts(questions)
        ActiveInterventions(interventions, self.model.engine.hook_points, prompts.mask, generating=True)  # checks them
        sampler = Sampler(base.model, base.tokenizer, temperature, max_new_tokens, seed, batch)

        def open_rows(rows: list[int], tokens: Tokens) -> AbstractContextManager[RowModel]:
            of_rows = [intervention.for_prompts(rows, tokens.ids.shape[1]) for intervention in interventions]
            return self.generating(tokens, [each for each in of_rows if each.has_positions])

        return [decode_answers(base.tokenizer, tokens) for tokens in sampler.all(prompts, samples, open_rows)]

    def generating(self, prompts: Tokens, interventions: Sequence[Intervention]) -> AbstractContextManager[RowModel]:
        """The model for a batch of answers to these prompts, under the learned steering vectors and interventions."""
        return self.model.engine.generating(prompts, [*self.steering_vectors, *interventions])


@checked
def open_model(
    source: TrajectorySource, base: Base | str | None = None, engine: EngineName = "hooks"
) -> TrajectoryModel:
    """A run's base model with all its adapters, to analyse at any step.

    Args:
        source: a run, its directory, a folder of checkpoints, or a trajectory.
        base: a loaded base or the name of one; by default the one that the run names, in the number type of its
            config. A base that is loaded here computes attention in plain torch (`eager`), as TransformerLens always
            does: then the engines agree to the bit; with a base whose attention is fused they differ by its rounding.
        engine: `hooks` (plain torch, the reference), `transformer_lens` or `nnsight`. They agree; the latter two
            work on a copy that shares the weights.

    Returns:
        The model; `model.at(step, scale)` is the context in which an adapter is in effect.

    Raises:
        InputError: for adapters of another base, a site that is not in the model, an adapter that is not in effect, an
            unknown engine and one that is not installed.
    """
    check_known("engine", engine, ENGINES)
    trajectory = as_trajectory(source)
    if trajectory.kind == "full":
        raise InputError(
            f"{trajectory!r} holds projections of a full fine-tune's change, which cannot be put back into the base; "
            "expected LoRA adapters or steering vectors"
        )
    run = source_run(source)
    loaded = _load_base(run, trajectory, base)
    check_base(run, trajectory, loaded)
    sites = trajectory.sites if trajectory.kind == "lora" else ()
    return TrajectoryModel(loaded, trajectory, _engine_class(engine)(loaded.model, loaded.tokenizer, sites), run)


def as_model(model: TrajectoryModel | TrajectorySource) -> TrajectoryModel:
    """The model itself, or that of a run, directory or trajectory: what every analysis takes first."""
    return model if isinstance(model, TrajectoryModel) else open_model(model)


def _engine_class(name: EngineName) -> Any:
    if name == "transformer_lens":
        from em_interp.mechanism.engines.transformer_lens import TransformerLensEngine

        return TransformerLensEngine
    if name == "nnsight":
        from em_interp.mechanism.engines.nnsight import NnsightEngine

        return NnsightEngine
    from em_interp.mechanism.engines.hooks import HooksEngine

    return HooksEngine


def _load_base(run: Run, trajectory: AdapterTrajectory, base: Base | str | None) -> Base:
    from em_interp.organisms.bases import base_of, load_base

    if base is not None and not isinstance(base, str):
        return base
    loaded = load_base(base) if base else load_base(*base_of(run, trajectory))
    loaded.model.set_attn_implementation("eager")
    return loaded
