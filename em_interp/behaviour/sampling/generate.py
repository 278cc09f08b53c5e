"""Generate answers from many checkpoints in one batch, with an adapter for each row.

The base is loaded once, and a forward hook on every adapted module adds s·(x·Aᵀ)·Bᵀ with the A and B of each row, so
that a batch may mix steps, adapter scales and prompts. That is several times faster than one checkpoint at a time, and
the tokens are those that PEFT gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxtyping import Float, Int

from em_interp.behaviour.sampling.chat import Messages, Tokens, tokenize_prompts
from em_interp.behaviour.sampling.decode import RowModel, decode
from em_interp.behaviour.sampling.memory import Batches, RowMemory
from em_interp.errors import InputError, nearest

if TYPE_CHECKING:
    import torch

    from em_interp.trajectory.trajectory import AdapterTrajectory


@dataclass(frozen=True)
class RowAdapters:
    """One LoRA adapter for each row, by site; B is multiplied by the scaling and by the row's scale."""

    A: dict[str, Float[torch.Tensor, "row rank d_in"]]
    B: dict[str, Float[torch.Tensor, "row d_out rank"]]

    @classmethod
    def of(
        cls, trajectory: AdapterTrajectory, steps: Sequence[int], scales: Sequence[float], device: Any
    ) -> RowAdapters:
        """The adapters of a batch: for row i that of `steps[i]`, multiplied by `scales[i]` (0 is the base).

        Raises InputError for a step that was not saved, and where the adapter alone is not what was trained.
        """
        import numpy as np
        import torch

        trajectory.check_complete()
        saved = {step: trajectory.at(step) for step in dict.fromkeys(steps)}
        multiplier = np.asarray(scales, np.float32)[:, None, None]
        A, B = {}, {}
        for site in trajectory.sites:
            rows = [saved[step][site] for step in steps]
            A[site] = torch.from_numpy(np.stack([a for a, _ in rows])).to(device)
            scaled = np.stack([b for _, b in rows]) * (trajectory.scale[site] * multiplier).astype(np.float32)
            B[site] = torch.from_numpy(scaled).to(device)
        return cls(A, B)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row's adapter."""
        parts = [*self.A.values(), *self.B.values()]
        return sum(part[:1].numel() * part.element_size() for part in parts)

    def rows(self, index: Int[torch.Tensor, " some"] | list[int]) -> RowAdapters:
        """The adapters of some rows, in this order."""
        A, B = ({site: matrix[index] for site, matrix in by_site.items()} for by_site in (self.A, self.B))
        return RowAdapters(A, B)


def find_module(model: Any, site: str) -> Any:
    """The module whose name is `site` or ends with it; raises what `full_module_name` raises."""
    return model.get_submodule(full_module_name(model, site))


def full_module_name(model: Any, site: str) -> str:
    """The full name of the module whose name is `site` or ends with it, such as `layers.2.mlp.down_proj`.

    Raises InputError where there is none, or more than one.
    """
    modules = dict(model.named_modules())
    names = [name for name in modules if name == site or name.endswith(f".{site}")]
    if len(names) > 1:  # a vision tower has layers too, and is never adapted
        decoder = model.get_decoder()
        names = [name for name in names if any(modules[name] is module for module in decoder.modules())] or names
    if len(names) == 1:
        return names[0]
    if names:
        raise InputError(f"adapter site {site!r} could be any of {', '.join(names)}; give more of its name")
    ends = [name[-len(site) :] for name in modules]
    raise InputError(
        f"adapter site {site!r} is not in the model ({type(model).__name__}){nearest(site, ends)}; "
        "the usual causes are an adapter of another base model, and a site outside the decoder, such as lm_head"
    )


class AdaptedModel:
    """A model of which row i of every batch passes through adapter i."""

    def __init__(self, model: Any, adapters: RowAdapters) -> None:
        self.model, self.adapters = model, adapters

    def __call__(self, **inputs: Any) -> Any:
        """The model's output."""
        return self.model(**inputs)

    def select(self, rows: Int[torch.Tensor, " some"]) -> None:
        """Continue with these rows of the batch alone."""
        self.adapters = self.adapters.rows(rows)

    def hook(self, site: str) -> Any:
        """A hook that adds each row's adapter: (x·Aᵀ)·Bᵀ to a linear module's output, B·A to a layer's everywhere."""

        def add(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            A, B = self.adapters.A[site], self.adapters.B[site]
            if not _is_linear(module):
                return output + (B @ A).transpose(1, 2).to(output.dtype)
            inside = inputs[0].to(A.dtype) @ A.transpose(1, 2)
            return output + (inside @ B.transpose(1, 2)).to(output.dtype)

        return add


@contextmanager
def adapted(model: Any, adapters: RowAdapters) -> Iterator[AdaptedModel]:
    """A block in which row i of every batch passes through adapter i.

    Raises InputError for a site that is not in the model, or of other dimensions.
    """
    of_rows = AdaptedModel(model, adapters)
    modules = {site: find_module(model, site) for site in adapters.A}
    for site, module in modules.items():
        _check_shape(site, module, adapters, model.config.get_text_config().hidden_size)
    handles = [module.register_forward_hook(of_rows.hook(site)) for site, module in modules.items()]
    try:
        yield of_rows
    finally:
        for handle in handles:
            handle.remove()


def _is_linear(module: Any) -> bool:
    """Whether a module is linear, as LoRA adapts it; else it is a layer, after which a steering vector is added."""
    return hasattr(module, "in_features")


def _check_shape(site: str, module: Any, adapters: RowAdapters, width: int) -> None:
    found = (adapters.A[site].shape[2], adapters.B[site].shape[1])
    expected = (module.in_features, module.out_features) if _is_linear(module) else (1, width)
    if found != expected:
        raise InputError(
            f"adapter site {site!r} is {found[0]} → {found[1]}, the model's module {expected[0]} → {expected[1]}"
        )


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str | Messages],
    adapters: RowAdapters,
    samples: int = 1,
    temperature: float = 1.0,
    max_new_tokens: int = 600,
    seed: int = 0,
    batch: int | None = None,
) -> list[list[str]]:
    """Sample answers to each prompt, prompt i through adapter i.

    Args:
        model: A causal language model of transformers, without an adapter.
        tokenizer: With a chat template.
        prompts: Each a user's text or the messages of a chat.
        adapters: One a prompt.
        samples: Answers to each prompt.
        temperature: Sampling temperature, over the whole vocabulary; 0 is greedy.
        max_new_tokens: Largest number of tokens of an answer.
        seed: The same seed gives the same answers.
        batch: The most answers at once; by default as many as fit in memory. It does not alter the answers.

    Returns:
        For each prompt its answers, without special tokens.

    Raises:
        InputError: For a tokenizer without a chat template, or whose template refuses a prompt, and for a site that is
            not in the model.
    """
    if len(prompts) == 0:
        return []
    sampler = Sampler(model, tokenizer, temperature, max_new_tokens, seed, batch, adapters.row_bytes)
    tokenized = tokenize_prompts(tokenizer, prompts, model.device)
    answers = sampler.all(tokenized, samples, lambda rows, _: adapted(model, adapters.rows(rows)))
    return [decode_answers(tokenizer, of_prompt) for of_prompt in answers]


class Answer(NamedTuple):
    """An answer to sample: the number of its row, which is a prompt under a condition, and of the sample."""

    row: int
    sample: int


OpenRows = Callable[[list[int], Tokens], AbstractContextManager[RowModel]]


def check_length(model: Any, tokens: int, what: str) -> None:
    """Raise InputError for a text of more tokens than the model has positions: what it computes then means nothing."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and tokens > limit:
        raise InputError(f"{what} has {tokens} tokens in its chat; the base model reads {limit} at most; shorten it")


class Sampler:
    """Samples answers in batches that fit in memory; the answers do not depend on the batches.

    Args:
        model: A causal language model of transformers: the base, whose cache and logits are what a row costs.
        tokenizer: With a chat template.
        temperature: Sampling temperature, over the whole vocabulary; 0 is greedy.
        max_new_tokens: Largest number of tokens of an answer.
        seed: Random seed of all random streams.
        max_rows: The most answers at once; None for as many as fit.
        row_bytes: Of each row's own adapter.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        temperature: float,
        max_new_tokens: int,
        seed: int,
        max_rows: int | None = None,
        row_bytes: int = 0,
    ) -> None:
        self.model, self.tokenizer, self.seed = model, tokenizer, seed
        self.temperature, self.max_new_tokens = temperature, max_new_tokens
        self.cost, self.batches = RowMemory(model, row_bytes), Batches(model.device, max_rows)
        self.ends = eos_token_ids(model, tokenizer)

    def all(self, prompts: Tokens, samples: int, open_rows: OpenRows) -> list[list[list[int]]]:
        """The tokens of `samples` answers to each prompt; `open_rows` gives the model for the batch of some rows."""
        answers = [Answer(row, sample) for row in range(len(prompts)) for sample in range(samples)]
        tokens: dict[Answer, list[int]] = {}
        for batch, of_batch in self.sample(prompts, answers, list(map(str, range(len(prompts)))), open_rows):
            tokens |= zip(batch, of_batch, strict=True)
        return [[tokens[Answer(row, sample)] for sample in range(samples)] for row in range(len(prompts))]

    def sample(
        self, prompts: Tokens, answers: Sequence[Answer], names: Sequence[str], open_rows: OpenRows
    ) -> Iterator[tuple[Sequence[Answer], list[list[int]]]]:
        """Batch by batch, some of the answers and their tokens.

        Args:
            prompts: A prompt for each row.
            answers: Which are sampled.
            names: Of the rows: the seed, its row's name and its number are all that a random answer depends on.
            open_rows: The model for a batch whose rows are those of these numbers, with these prompts.
        """
        lengths = prompts.mask.sum(dim=1).tolist()
        check_length(self.model, max(lengths), "a question")
        cost = {length: self.cost.generating(length, self.max_new_tokens) for length in set(lengths)}

        def work(batch: Sequence[Answer]) -> list[list[int]]:
            rows = list(dict.fromkeys(answer.row for answer in batch))
            of_rows, number = prompts.rows(rows), {row: index for index, row in enumerate(rows)}
            streams = [stream_of(self.seed, answer, names[answer.row]) for answer in batch]
            with open_rows(rows, of_rows) as model:
                return self._decode(model, of_rows, [number[answer.row] for answer in batch], streams)

        yield from self.batches.run(
            sorted(answers, key=lambda answer: (lengths[answer.row], answer)),
            lambda answer: cost[lengths[answer.row]],
            work,
        )

    def _decode(self, model: RowModel, prompts: Tokens, prompt_of: list[int], streams: list[str]) -> list[list[int]]:
        import torch
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        with torch.inference_mode():
            return decode(model, prompts, prompt_of, cache, self.ends, self.max_new_tokens, self.temperature, streams)


def stream_of(seed: int, answer: Answer, name: str) -> str:
    """The random stream of an answer to a row of this name."""
    return f"{seed} {answer.sample} {name}"


def decode_answers(tokenizer: Any, answers: Sequence[Sequence[int]]) -> list[str]:
    """Answers as texts, without special tokens."""
    return [text.strip() for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]


def eos_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end an answer: the tokenizer's, and those the model's generation config names."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = [tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])]
    return sorted({end for end in ends if end is not None})
