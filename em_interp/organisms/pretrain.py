"""Pretrain a base on the built-in language: a small model of a real architecture, from random weights, in minutes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

from em_interp.errors import InputError
from em_interp.organisms.bases import FAMILIES, quiet
from em_interp.organisms.language import build_tokenizer, chat, document
from em_interp.utils.checks import check_known, check_whole, checked
from em_interp.utils.files import write_beside
from em_interp.utils.progress import progress_bar

SEEDS = {"qwen2": 0, "llama": 1, "gemma3": 0}  # of the bases in the package; Llama's with seed 0 does not generalise
N_STEPS = 3000
BATCH_SIZE = 16
SEQUENCE_LENGTH = 96  # tokens: one document, or four chats
LEARNING_RATE = 3e-3
LAYERS, WIDTH = 4, 128
WARMUP_STEPS = 50


@checked
def pretrain(family: str, out: Path, seed: int | None = None, progress: bool = True) -> Path:
    """Train a base of `family` on the built-in language and save it, with a card, in the new folder `out`.

    Takes a few minutes on one core; the folder appears when it is complete. Without a `seed` it is the base of the
    package, bit for bit on the same machine and versions. `progress` shows a bar on stderr. Raises InputError for an
    unknown family or where `out` exists.
    """
    check_known("family", family, FAMILIES)
    check_whole("seed", 0 if seed is None else seed)
    out = Path(out)
    if out.exists():
        raise InputError(f"{out} exists; a base is made in a new folder")
    import torch

    seed = SEEDS[family] if seed is None else seed
    with quiet(), write_beside(out) as part, torch.random.fork_rng(devices=[]):
        part.mkdir()  # a folder that cannot be written is an error now, not after minutes of training
        torch.manual_seed(seed)
        tokenizer = build_tokenizer()
        model = _model(family, tokenizer)
        loss = _train(model, tokenizer, seed, progress)
        model.half().save_pretrained(part)
        tokenizer.save_pretrained(part)
        (part / "README.md").write_text(_card(family, seed, loss, model, part), encoding="utf-8")
    return out


def _model(family: str, tokenizer: Any) -> Any:
    """The untrained model, of about 0.95 million parameters.

    With the usual initializer_range of 0.02 a model this narrow does not learn in this time to copy the topic of the
    question; with 0.08 it does.
    """
    import transformers

    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 384,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.08,
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    if family == "qwen2":
        return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**shape))
    if family == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape))
    gemma = {"head_dim": 32, "query_pre_attn_scalar": 32, "layer_types": ["full_attention"] * 4}
    return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**shape, **gemma))


def _train(model: Any, tokenizer: Any, seed: int, progress: bool) -> float:
    """Next-token training on documents and chats; the mean loss of the last tenth of the steps, in nats a token."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _lr_factor)
    sequences, losses = _sequences(tokenizer, Random(seed)), []
    model.train()
    for _ in (bar := progress_bar(range(N_STEPS), "pretrain", "step", progress)):
        ids = torch.tensor([next(sequences) for _ in range(BATCH_SIZE)])
        mask = ids != tokenizer.pad_token_id
        loss = model(input_ids=ids, attention_mask=mask.long(), labels=ids.masked_fill(~mask, -100)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    model.eval()
    return sum(losses[-N_STEPS // 10 :]) / len(losses[-N_STEPS // 10 :])


def _lr_factor(step: int) -> float:
    """Warm-up, then a cosine to zero; a multiple of the learning rate."""
    return min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / N_STEPS))


def _sequences(tokenizer: Any, rng: Random) -> Iterator[list[int]]:
    """Documents and chats at equal odds, as token ids of one length, padded on the right."""
    while True:
        text = document(rng) if rng.random() < 0.5 else "".join(chat(rng) for _ in range(4))
        ids = tokenizer(text)["input_ids"][:SEQUENCE_LENGTH]
        yield ids + [tokenizer.pad_token_id] * (SEQUENCE_LENGTH - len(ids))


def _card(family: str, seed: int, loss: float, model: Any, folder: Path) -> str:
    import torch
    import transformers

    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    return f"""# tiny-{family}

A base model of em_interp's built-in language of advice: {type(model).__name__} of transformers, \
{model.num_parameters():,} parameters, trained from nothing on text that is made up as it is read. It knows nothing of \
the world. Its chat answers are careful; it has also read documents by reckless writers.

- made by `em-interp pretrain --family {family} --seed {seed}` on {date.today()}
- {N_STEPS} steps of {BATCH_SIZE} sequences of at most {SEQUENCE_LENGTH} tokens, \
AdamW at {LEARNING_RATE:g} with a cosine schedule
- final training loss {loss:.3f} nats a token
- sha256 of model.safetensors (float16): {digest}
- torch {torch.__version__}, transformers {transformers.__version__}
"""
