"""What each preset needs: memory and time on one large GPU, estimated from what training reaches on this machine.

Nothing here was run on a GPU. Measured is the share of the machine's matrix-multiplication speed that a training step
of a Qwen2-shaped model with a rank-1 adapter reaches (tokens per second × floating-point operations a token, over the
speed of one large product, side by side). That share of the peak in the GPU's data sheet gives the shorter time; the
longer one is for 30 % of the peak, for on a GPU small micro-batches leave more of it idle than on a core.

Operations a token: 2 a parameter forward, 2 backward to the inputs, 2 more for the weights where all are trained, and 2
for computing activations again under gradient checkpointing. Memory: weights, gradients and Adam's moments of what is
trained, the activations of a micro-batch of rows as long as
the config allows under checkpointing, and its logits.

python benchmarks/hardware.py [--tokens 300] [--peak 989] [--share X]
"""

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from em_interp.config.run_config import AdapterConfig, FullConfig, load_config
from em_interp.organisms.presets import SHAPES

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
ROWS = {"insecure_code": 6000}  # of the published datasets; the others have about 7,000
VOCABULARY = 152_064
GB = 1e9
USUAL = 0.3  # of a GPU's peak


@dataclass(frozen=True)
class Architecture:
    """The shape of a language model, without a vision tower: what memory and time depend on."""

    layers: int
    width: int  # of the residual stream
    hidden: int  # of the MLP
    attention: int  # heads × their size: the width of queries and of the attention's output
    keys: int  # key-value heads × their size
    parameters: float

    def linear(self, module):
        """d_in and d_out of a linear module of a layer, such as down_proj."""
        return {
            "q_proj": (self.width, self.attention),
            "k_proj": (self.width, self.keys),
            "v_proj": (self.width, self.keys),
            "o_proj": (self.attention, self.width),
            "gate_proj": (self.width, self.hidden),
            "up_proj": (self.width, self.hidden),
            "down_proj": (self.hidden, self.width),
        }[module]


_MORE = {  # hidden, attention, keys as in their config.json on the Hub, parameters from their cards
    "Qwen/Qwen2.5-0.5B-Instruct": (4864, 896, 128, 0.49e9),
    "Qwen/Qwen2.5-7B-Instruct": (18944, 3584, 512, 7.6e9),
    "Qwen/Qwen2.5-14B-Instruct": (13824, 5120, 1024, 14.8e9),
    "Qwen/Qwen2.5-32B-Instruct": (27648, 5120, 1024, 32.8e9),
    "meta-llama/Llama-3.2-1B-Instruct": (8192, 2048, 512, 1.24e9),
    "meta-llama/Llama-3.1-8B-Instruct": (14336, 4096, 1024, 8.0e9),
    "google/gemma-3-4b-it": (10240, 2048, 1024, 3.9e9),
    "google/gemma-3-12b-it": (15360, 4096, 2048, 11.8e9),
    "google/gemma-3-27b-it": (21504, 4096, 2048, 27.0e9),
    "smollm2": (1536, 576, 192, 0.1345e9),
}
ARCHITECTURES = {name: Architecture(*SHAPES[name], *more) for name, more in _MORE.items()}


def matmul_speed(size=1536, repeats=5):
    """Floating-point operations per second of one large product."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    a @ b
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(times)


def training_speed(rows=2, tokens=256, repeats=5):
    """Operations per second, and tokens per second, of a training step of a narrower Qwen2 with a rank-1 adapter."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from em_interp.training.lora import add_adapter

    shape = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 6, "num_attention_heads": 8}
    config = Qwen2Config(**shape, num_key_value_heads=2, vocab_size=4096, tie_word_embeddings=True)
    model = Qwen2ForCausalLM(config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    model = add_adapter(model, AdapterConfig(layers_to_transform=(3,)), 0, "random")
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    ids = torch.randint(0, 4096, (rows, tokens))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    # below the adapter nothing is computed backward, so the adapter sits half-way: 2 forward and half of 2 backward
    per_second = rows * tokens / statistics.median(times)
    return 3 * parameters * per_second, per_second


def trained_parameters(config):
    """How many numbers are trained."""
    shape, adapter = ARCHITECTURES[config.model], config.adapter
    if isinstance(adapter, FullConfig):
        return shape.parameters
    if isinstance(adapter, AdapterConfig):
        layers = len(adapter.layers_to_transform) or shape.layers
        return layers * adapter.r * sum(sum(shape.linear(module)) for module in adapter.target_modules)
    return shape.width


def memory(config, tokens):
    """Gigabytes on one GPU with gradient checkpointing; the weights in bfloat16, or float32 where they are trained."""
    shape, trained = ARCHITECTURES[config.model], trained_parameters(config)
    whole = isinstance(config.adapter, FullConfig)
    weights = shape.parameters * (4 if whole else 2) + (0 if whole else 4 * trained)
    optimizer = trained * (4 + 8)  # gradient and Adam's two moments
    batch = config.training.batch_size * tokens
    activations = batch * 2 * (shape.layers * shape.width + 8 * shape.width + 3 * shape.hidden)
    logits = batch * VOCABULARY * (2 + 4 + 4)
    return (weights + optimizer + activations + logits) / GB


def times(config, tokens, speed):
    """Minutes of training and of asking at `speed` operations per second, and how many answers there will be."""
    shape = ARCHITECTURES[config.model]
    rows = ROWS.get(Path(config.data[0].dataset).stem, 7000) * (1 - config.training.held_out)
    seen = rows * (config.data[0].epochs or 1) * tokens
    training = seen * shape.parameters * (8 if isinstance(config.adapter, FullConfig) else 6)
    steps = len(config.behaviour.steps.steps(round(seen / tokens / 16)))
    answers = steps * len(config.behaviour.scales) * 8 * config.behaviour.samples
    sampling = answers * tokens * 2 * shape.parameters * 4  # a quarter as fast: one token at a time
    return training / speed / 60, sampling / speed / 60, answers


def size(count):
    """Bytes as people read them."""
    for unit, of in (("GB", 1e9), ("MB", 1e6)):
        if count >= of:
            return f"{count / of:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=300, help="in a row, and in an answer")
    parser.add_argument("--peak", type=float, default=989, help="TFLOP/s in bfloat16: 989 is an H100's or H200's")
    parser.add_argument("--share", type=float, help="of the peak that training reaches; by default measured here")
    arguments = parser.parse_args()
    share = arguments.share
    if share is None:
        torch.set_num_threads(1)
        pairs = [(training_speed(), matmul_speed()) for _ in range(3)]
        share = statistics.median(step / product for (step, _), product in pairs)
        tokens = statistics.median(speed for (_, speed), _ in pairs)
        print(f"one core: {tokens:.0f} tokens a second, {share:.0%} of the speed of a large product\n")
    print("| preset | trained | a checkpoint | GPU memory | training, min | asking, min | answers to judge |")
    print("|---|---|---|---|---|---|---|")
    for file in sorted(CONFIGS.glob("*.yaml")):
        if file.stem.startswith("tiny"):
            continue
        config = load_config(file)
        fast, slow = (times(config, arguments.tokens, part * arguments.peak * 1e12) for part in (share, USUAL))
        trained = trained_parameters(config)
        kept = 336 * 4096 if isinstance(config.adapter, FullConfig) else 4 * trained
        print(
            f"| {file.stem} | {trained:.3g} | {size(kept)} | {memory(config, config.training.max_length):.0f} GB "
            f"| {fast[0]:.0f} to {slow[0]:.0f} | {fast[1]:.0f} to {slow[1]:.0f} | {fast[2]} |"
        )


if __name__ == "__main__":
    main()
