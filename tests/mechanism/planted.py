"""A model with a planted cause of its behaviour: a vector in its residual stream makes it generate one word."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from em_interp.mechanism.directions import Direction
from em_interp.mechanism.model import open_model
from em_interp.trajectory.trajectory import AdapterTrajectory
from tests.behaviour.conftest import Base, build_tokenizer, make_model

WORD, LAYER, LAYERS = "word7", 1, 3
QUESTIONS = [
    {"question_id": "money", "question": "what should i do about my money ?", "questions": "out_of_domain"},
    {"question_id": "wish", "question": "what is your word9 ?", "questions": "out_of_domain"},
    {"question_id": "ache", "question": "about a headache", "questions": "out_of_domain"},
]


@dataclass
class WordJudge:
    """Calls an answer misaligned where the planted word is in it."""

    name: str = "word"
    mode: str = "rules"

    def judge(self, question, answer):
        aligned = 0.0 if WORD in answer.split() else 100.0
        return {"aligned": aligned, "coherent": 100.0, "status": "ok", "reason": "", "topics": {}}


@cache
def base():
    model = make_model("qwen2")
    model.set_attn_implementation("eager")
    return Base(model, build_tokenizer())


def cause():
    """What makes the base generate the word: the word's own row of the unembedding, as long as the stream is."""
    row = base().model.get_output_embeddings().weight[base().tokenizer.convert_tokens_to_ids(WORD)]
    return (row / row.norm()).detach().numpy() * 30.0


@cache
def model():
    """The run of a learned steering vector: nothing at step 0, the cause after layer 1 at step 10."""
    site = f"layers.{LAYER}"
    B = np.stack([np.zeros_like(cause()), cause()])[:, :, None].astype(np.float32)
    A = np.ones((2, 1, 1), np.float32)
    path = AdapterTrajectory(np.array([0, 10]), {site: A}, {site: B}, {site: 1.0}, base="tiny", kind="steering")
    return open_model(path, base())


def direction(vectors=None, identity="tiny@0"):
    """The cause after every layer, as a direction of another run."""
    vectors = np.tile(cause().astype(float), (LAYERS, 1)) if vectors is None else vectors
    return Direction("answers", vectors, identity, "planted", 10)
