"""The shapes of the models that the published organisms were made of, and of any model whose config is at hand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_interp.errors import InputError, nearest
from em_interp.organisms.bases import BUILT_IN
from em_interp.organisms.pretrain import LAYERS, WIDTH


@dataclass(frozen=True)
class Architecture:
    """What memory, time and the place of a layer depend on; of the language model, without a vision tower."""

    layers: int
    width: int  # of the residual stream
    hidden: int  # of the MLP
    attention: int  # heads × their size: what queries and the attention's output are wide
    keys: int  # key-value heads × their size
    parameters: float

    def linear(self, module: str) -> tuple[int, int]:
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


# from the models' config.json on the Hub; parameters from their cards
PUBLISHED = {
    "Qwen/Qwen2.5-0.5B-Instruct": Architecture(24, 896, 4864, 896, 128, 0.49e9),
    "Qwen/Qwen2.5-7B-Instruct": Architecture(28, 3584, 18944, 3584, 512, 7.6e9),
    "Qwen/Qwen2.5-14B-Instruct": Architecture(48, 5120, 13824, 5120, 1024, 14.8e9),
    "Qwen/Qwen2.5-32B-Instruct": Architecture(64, 5120, 27648, 5120, 1024, 32.8e9),
    "meta-llama/Llama-3.2-1B-Instruct": Architecture(16, 2048, 8192, 2048, 512, 1.24e9),
    "meta-llama/Llama-3.1-8B-Instruct": Architecture(32, 4096, 14336, 4096, 1024, 8.0e9),
    "google/gemma-3-4b-it": Architecture(34, 2560, 10240, 2048, 1024, 3.9e9),
    "google/gemma-3-12b-it": Architecture(48, 3840, 15360, 4096, 2048, 11.8e9),
    "google/gemma-3-27b-it": Architecture(62, 5376, 21504, 4096, 2048, 27.0e9),
}


def layers_and_width(model: str) -> tuple[int, int]:
    """How many layers a model has and how wide it is, from the table above or its config.json on disk.

    Raises InputError for a model of which neither is there: nothing is fetched.
    """
    if model in PUBLISHED:
        return PUBLISHED[model].layers, PUBLISHED[model].width
    if model in BUILT_IN:
        return LAYERS, WIDTH
    folder = Path(model)
    if not (folder / "config.json").is_file():
        known = [*PUBLISHED, *BUILT_IN]
        raise InputError(
            f"the layers of {model!r} are not known here{nearest(model, known)}; known: {', '.join(known)}"
        )
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)  # of a model with a vision tower
    return int(config["num_hidden_layers"]), int(config["hidden_size"])
