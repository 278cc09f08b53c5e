"""Generate answers from many checkpoints in one batch, with an adapter for each row.

The base is loaded once, and a forward hook on every adapted module adds s·(x·Aᵀ)·Bᵀ with the A and B of each row, so
that a batch may mix steps, adapter scales and prompts. That is several times faster than one checkpoint at a time, and
the tokens are those that PEFT gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Int

from em_interp.behaviour.chat import Messages, Tokens, tokenize_prompts
from em_interp.errors import InputError, nearest

if TYPE_CHECKING:
    import torch

    from em_interp.trajectory.trajectory import AdapterTrajectory

MAX_FINISHED = 0.2  # share of finished rows at which they are dropped from the batch


@dataclass(frozen=True)
class RowAdapters:
    """One LoRA adapter for each row, by site; B is multiplied by the scaling and by the row's scale."""

    A: dict[str, Float[torch.Tensor, "row rank d_in"]]
    B: dict[str, Float[torch.Tensor, "row d_out rank"]]

    @classmethod
    def of(
        cls, trajectory: AdapterTrajectory, steps: Sequence[int], scales: Sequence[float], device: Any
    ) -> RowAdapters:
        """Row i gets the adapter saved at `steps[i]`, multiplied by `scales[i]` (0: the base, 1: as trained).

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

    def rows(self, index: Int[torch.Tensor, " some"]) -> RowAdapters:
        """The adapters of some rows, in this order."""
        A, B = ({site: matrix[index] for site, matrix in by_site.items()} for by_site in (self.A, self.B))
        return RowAdapters(A, B)


def find_module(model: Any, site: str) -> Any:
    """The module whose name is `site` or ends with it, such as `layers.2.mlp.down_proj`.

    Raises InputError where there is none, or more than one.
    """
    modules = dict(model.named_modules())
    names = [name for name in modules if name == site or name.endswith(f".{site}")]
    if len(names) > 1:  # a vision tower has layers too, and is never adapted
        decoder = model.get_decoder()
        names = [name for name in names if any(modules[name] is module for module in decoder.modules())] or names
    if len(names) == 1:
        return modules[names[0]]
    if names:
        raise InputError(f"adapter site {site!r} could be any of {', '.join(names)}; give more of its name")
    ends = [name[-len(site) :] for name in modules]
    raise InputError(
        f"adapter site {site!r} is not in the model ({type(model).__name__}){nearest(site, ends)}; "
        "the usual cause is an adapter of another base model"
    )


@contextmanager
def adapted(model: Any, adapters: RowAdapters) -> Iterator[list[RowAdapters]]:
    """A block in which row i of every batch passes through adapter i.

    Yields a list with the adapters as its only item; replace it when the batch changes. Raises InputError for a site
    that is not in the model, or of other dimensions.
    """
    current = [adapters]
    modules = {site: find_module(model, site) for site in adapters.A}
    for site, module in modules.items():
        _check_shape(site, module, adapters, model.config.get_text_config().hidden_size)
    handles = [module.register_forward_hook(_hook(site, current)) for site, module in modules.items()]
    try:
        yield current
    finally:
        for handle in handles:
            handle.remove()


def _hook(site: str, current: list[RowAdapters]) -> Any:
    """A hook that adds each row's adapter: (x·Aᵀ)·Bᵀ to a linear module's output, B·A to a layer's at every token."""

    def add(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        A, B = current[0].A[site], current[0].B[site]
        if not _is_linear(module):
            return output + (B @ A).transpose(1, 2).to(output.dtype)
        inside = inputs[0].to(A.dtype) @ A.transpose(1, 2)
        return output + (inside @ B.transpose(1, 2)).to(output.dtype)

    return add


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
) -> list[list[str]]:
    """Sample answers to each prompt, prompt i through adapter i.

    Args:
        model: A causal language model of transformers, without an adapter.
        tokenizer: With a chat template.
        prompts: Each a user's text or the messages of a chat.
        adapters: One a prompt.
        samples: Answers to each prompt.
        temperature: Of sampling from the whole vocabulary; 0 is greedy.
        max_new_tokens: Of an answer.
        seed: The same call gives the same answers.

    Returns:
        For each prompt its answers, without special tokens.

    Raises:
        InputError: For a tokenizer without a chat template, or whose template refuses a prompt, and for a site that is
            not in the model.
    """
    import torch

    if len(prompts) == 0:
        return []
    tokenized = tokenize_prompts(tokenizer, prompts, model.device)
    with torch.inference_mode(), adapted(model, adapters) as current:
        batch, logits = _prefill(model, tokenized)
        batch, logits = batch.repeated(samples), logits.repeat_interleave(samples, dim=0)
        current[0] = adapters.rows(batch.row // samples)
        tokens = _decode(model, tokenizer, batch, logits, current, temperature, max_new_tokens, seed)
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [[text.strip() for text in texts[i : i + samples]] for i in range(0, len(texts), samples)]


@dataclass(frozen=True)
class _Batch:
    """Rows whose answers are not finished."""

    row: Int[torch.Tensor, " alive"]  # their numbers in the whole batch
    cache: Any  # keys and values
    mask: Int[torch.Tensor, "alive position"]  # 0 at padding

    def repeated(self, samples: int) -> _Batch:
        import torch

        self.cache.batch_repeat_interleave(samples)
        row = torch.arange(len(self.row) * samples, device=self.row.device)
        return _Batch(row, self.cache, self.mask[row // samples])

    def select(self, keep: Int[torch.Tensor, " some"]) -> _Batch:
        self.cache.batch_select_indices(keep)
        return _Batch(self.row[keep], self.cache, self.mask[keep])

    def forward(self, model: Any, ids: Int[torch.Tensor, "alive new"]) -> Float[torch.Tensor, "alive vocabulary"]:
        """Logits after the last of the new tokens; the mask covers them already."""
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]


def _prefill(model: Any, prompts: Tokens) -> tuple[_Batch, Float[torch.Tensor, "prompt vocabulary"]]:
    """The prompts through the model once."""
    import torch
    from transformers import DynamicCache

    row = torch.arange(len(prompts), device=model.device)
    batch = _Batch(row, DynamicCache(config=model.config), prompts.mask.long())
    return batch, batch.forward(model, prompts.ids)


def _decode(
    model: Any,
    tokenizer: Any,
    batch: _Batch,
    logits: Float[torch.Tensor, "row vocabulary"],
    current: list[RowAdapters],
    temperature: float,
    max_new_tokens: int,
    seed: int,
) -> list[list[int]]:
    """New tokens of every row, without its end-of-turn token."""
    import torch

    rng = torch.Generator(device=model.device).manual_seed(seed)
    end = torch.tensor(end_tokens(model, tokenizer), device=model.device)
    tokens: list[list[int]] = [[] for _ in batch.row]
    done = torch.zeros_like(batch.row, dtype=torch.bool)
    for _ in range(max_new_tokens):
        new = _sample(logits, temperature, rng)
        done = done | torch.isin(new, end)
        for row, token in zip(batch.row[~done].tolist(), new[~done].tolist(), strict=True):
            tokens[row].append(token)
        if done.all():
            break
        if done.float().mean() >= MAX_FINISHED:
            keep = torch.nonzero(~done)[:, 0]
            batch, new, done = batch.select(keep), new[keep], done[keep]
            current[0] = current[0].rows(keep)
        batch = replace(batch, mask=torch.cat([batch.mask, torch.ones_like(new)[:, None]], dim=1))
        logits = batch.forward(model, new[:, None])
    return tokens


def _sample(
    logits: Float[torch.Tensor, "alive vocabulary"], temperature: float, rng: torch.Generator
) -> Int[torch.Tensor, " alive"]:
    import torch

    if temperature == 0:
        return logits.argmax(dim=-1)
    return torch.multinomial(torch.softmax(logits.float() / temperature, dim=-1), 1, generator=rng)[:, 0]


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end an answer: the tokenizer's, and those the model's generation config names."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    ends = [tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])]
    return sorted({end for end in ends if end is not None})
