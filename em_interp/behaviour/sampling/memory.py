"""Batches that fit in memory: how much is free, what a row costs, and fewer rows if that was not enough.

The cost of a row is what grows with the batch: keys and values (read from the cache that one forward pass of the model
fills, so that grouped heads, sliding windows and compressed caches count as what they are), logits, activations of
the prompt and the row's own adapter. Where an estimate was too low and memory runs out, the batch is halved and the
work continues; answers and likelihoods do not depend on the batch they were computed in.
"""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from em_interp.errors import InputError, one_line
from em_interp.utils.progress import announce

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
R = TypeVar("R")
USABLE = 0.7  # share of the free memory: the rest is for copies of a layer's cache, fragmentation and other programs
MAX_ROWS = 512  # at once; more are no faster, and an interruption loses what is not finished
CGROUP = Path("/sys/fs/cgroup")
CGROUP_FILES = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
NO_LIMIT = 2**62
ALLOCATION_FAILURES = ("can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory")


class OutOfMemory(InputError, MemoryError):
    """Not even one row fits."""


class KVCacheSize(NamedTuple):
    """Bytes of a row's keys and values: of layers that keep every token, of those with a window, and fixed states."""

    per_token: int
    windows: tuple[tuple[int, int], ...]  # bytes a token, tokens kept
    fixed: int

    def of(self, tokens: int) -> int:
        """Bytes that a row with this number of tokens takes."""
        return self.fixed + tokens * self.per_token + sum(size * min(tokens, window) for size, window in self.windows)


_CACHE_SIZES: weakref.WeakKeyDictionary[Any, KVCacheSize] = weakref.WeakKeyDictionary()


def kv_cache_size(model: Any) -> KVCacheSize:
    """What the model's cache holds of a row, measured on one token."""
    if model not in _CACHE_SIZES:
        _CACHE_SIZES[model] = _measured(model)
    return _CACHE_SIZES[model]


def _measured(model: Any) -> KVCacheSize:
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), past_key_values=cache, use_cache=True)
    per_token, windows, fixed = 0, [], 0
    for layer in cache.layers:
        tensors = [value for value in vars(layer).values() if isinstance(value, torch.Tensor)]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if getattr(layer, "keys", None) is None:
            fixed += size
        elif getattr(layer, "is_sliding", False):
            windows.append((size, int(layer.sliding_window)))
        else:
            per_token += size
    return KVCacheSize(per_token, tuple(windows), fixed)


@dataclass(frozen=True)
class RowMemory:
    """Bytes of a row of a model, beyond the weights.

    Attributes:
        model: A causal language model of transformers.
        adapter: Bytes of the row's own adapter and interventions.
    """

    model: Any
    adapter: int = 0

    def generating(self, prompt: int, new: int) -> int:
        """Bytes of a row that reads a prompt and generates `new` tokens.

        Keys and values, logits and activations of the prompt are added up: a little more than is held at any one time.
        """
        vocabulary = self._config.vocab_size * (self._bytes + 8)  # logits, and probabilities in float32
        return self.adapter + kv_cache_size(self.model).of(prompt + new) + vocabulary + self._activations(prompt)

    def reading(self, length: int, answer: int, copies: int = 1) -> int:
        """Bytes of a row of `length` tokens whose logits are read at `answer` tokens, `copies` of them in float32."""
        logits = (answer + 1) * self._config.vocab_size * (self._bytes + 8 * copies)
        return self.adapter + logits + self._activations(length)

    @property
    def _config(self) -> Any:
        return self.model.config.get_text_config()

    @property
    def _bytes(self) -> int:
        return int(self.model.dtype.itemsize)

    def _activations(self, tokens: int) -> int:
        """Bytes of one layer: a few copies of the residual stream and of the MLP's hidden state, and the mask."""
        config = self._config
        inner = getattr(config, "intermediate_size", 4 * config.hidden_size)
        eager = getattr(config, "_attn_implementation", None) == "eager"
        attention = tokens * tokens * (4 + eager * config.num_attention_heads * (self._bytes + 4))
        return tokens * (8 * config.hidden_size + 3 * inner) * self._bytes + attention


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device: of a GPU, or of this machine as far as this process may use it."""
    import torch

    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    shared = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # processes of one launch on this machine
    return min(*_limits(), _available()) // shared


def _available() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def _limits() -> Iterator[int]:
    """What is left of each limit that this process has: of its address space, and of its container."""
    import psutil

    process = psutil.Process()
    if hasattr(process, "rlimit"):  # on Linux
        soft, _ = process.rlimit(psutil.RLIMIT_AS)
        yield soft - process.memory_info().vms if soft >= 0 else NO_LIMIT
    for limit, used in CGROUP_FILES:
        try:
            yield int((CGROUP / limit).read_text()) - int((CGROUP / used).read_text())
        except (OSError, ValueError):  # no such limit
            yield NO_LIMIT


class Batches:
    """Work on rows in batches that fit in memory; after an out-of-memory they stay smaller.

    Attributes:
        max_rows: Rows of a batch at most; MAX_ROWS by default.
    """

    def __init__(
        self, device: torch.device, max_rows: int | None = None, log: Callable[[str], None] = announce
    ) -> None:
        self.device, self.max_rows, self.log = device, MAX_ROWS if max_rows is None else max_rows, log

    def run(
        self, rows: Sequence[T], cost: Callable[[T], int], work: Callable[[Sequence[T]], R]
    ) -> Iterator[tuple[Sequence[T], R]]:
        """Each batch of neighbouring rows with what `work` returns for it.

        Raises OutOfMemory where not even one row fits.
        """
        first = 0
        while first < len(rows):
            batch = rows[first : first + self._count(rows[first : first + self.max_rows], cost)]
            outcome = _attempt(work, batch)
            if isinstance(outcome, _Failure):
                self._halve(len(batch), outcome.words)
            else:
                yield batch, outcome
                first += len(batch)

    def _count(self, rows: Sequence[T], cost: Callable[[T], int]) -> int:
        """How many of the first rows fit: all are padded to the costliest."""
        usable, largest = USABLE * free_memory(self.device), 0
        for count, row in enumerate(rows):
            largest = max(largest, cost(row))
            if count and (count + 1) * largest > usable:
                return count
        return len(rows)

    def _halve(self, count: int, error: str) -> None:
        if count == 1:
            raise OutOfMemory(f"there is not enough memory for one answer at a time ({error}); use a larger machine")
        self.max_rows = count // 2
        self.log(f"out of memory with {count} answers at once; continuing with {self.max_rows}")


class _Failure(NamedTuple):
    """The message of an out-of-memory error."""

    words: str


def _attempt(work: Callable[[Sequence[T]], R], batch: Sequence[T]) -> R | _Failure:
    """What `work` returns; where memory ran out nothing of the attempt is kept."""
    try:
        return work(batch)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        failure = _Failure(one_line(str(error), 120) or type(error).__name__)
    empty_caches()
    return failure


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the CPU or on a GPU."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in ALLOCATION_FAILURES)


def empty_caches() -> None:
    """Return what is no longer used to the device."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
