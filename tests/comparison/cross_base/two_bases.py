"""Small models of two architectures with random weights, one of them in other coordinates, and adapters on them."""

import copy
import dataclasses

import numpy as np
import pandas as pd
import torch
import transformers

from em_interp.organisms.bases import Base
from em_interp.organisms.language import build_tokenizer
from em_interp.trajectory.trajectory import AdapterTrajectory

SITE = "layers.0.mlp.down_proj"
STEPS = np.arange(0, 41, 4)
SHAPE = {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
SHAPE |= {"initializer_range": 0.2, "max_position_embeddings": 128}


def small_base(family="qwen2", d=32, seed=0):
    """An untrained model that is not far from linear, with gains of its own and an unembedding of its own."""
    tokenizer = build_tokenizer()
    shape = {**SHAPE, "hidden_size": d, "vocab_size": len(tokenizer), "tie_word_embeddings": False}
    shape |= {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    torch.manual_seed(seed)
    if family == "qwen2":
        model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**shape))
    else:
        gemma = {"head_dim": 16, "query_pre_attn_scalar": 16, "layer_types": ["full_attention"] * 2}
        model = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**shape, **gemma))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(0.3 * torch.randn_like(weight))
    return Base(model.eval(), tokenizer, f"small-{family}", f"small-{family}@{seed}")


def turned(base, seed=1):
    """A copy of a Qwen2 whose residual stream has other coordinates, h Q; and Q. Gains are folded in first."""
    model = copy.deepcopy(base.model)
    inner, head = model.model, model.lm_head
    d = head.weight.shape[1]
    Q = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).Q
    with torch.no_grad():
        for layer in inner.layers:
            attention, mlp = layer.self_attn, layer.mlp
            readers = [(layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj))]
            readers += [(layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj))]
            for norm, modules in readers:
                fold(norm, modules, Q)
            for module in (attention.o_proj, mlp.down_proj):
                module.weight.copy_(Q.T @ module.weight.double())
        fold(inner.norm, [head], Q)
        inner.embed_tokens.weight.copy_(inner.embed_tokens.weight.double() @ Q)
    return dataclasses.replace(base, model=model, name="turned-qwen2", identity="turned-qwen2@0"), Q.numpy()


def fold(norm, modules, Q):
    for module in modules:
        module.weight.copy_((module.weight.double() * norm.weight.double()) @ Q)
    norm.weight.fill_(1.0)


def path_on(base, seed=0, norm=2.0, turn=None, b=None, a=None):
    """A rank-1 adapter that grows in a straight line and turns a little, on the first layer's down_proj."""
    rng = np.random.default_rng([seed, 77])
    d_out, d_in = base.model.model.layers[0].mlp.down_proj.weight.shape
    b = rng.normal(size=d_out) if b is None else b
    a = rng.normal(size=d_in) if a is None else a
    b, a = b / np.linalg.norm(b), a / np.linalg.norm(a)
    b = b if turn is None else b @ turn
    time = STEPS / STEPS[-1]
    B = norm * (time[:, None] * b)[:, :, None]
    A = np.tile(a, (len(STEPS), 1))[:, None]
    rates = pd.DataFrame({"cumulative_lr": 1e-3 * STEPS[1:]}, index=pd.Index(STEPS[1:], name="step"))
    parts = {"A": {SITE: A.astype(np.float32)}, "B": {SITE: B.astype(np.float32)}}
    return AdapterTrajectory(STEPS, **parts, scale={SITE: 1.0}, metrics=rates, base=base.name, source=base.name)
