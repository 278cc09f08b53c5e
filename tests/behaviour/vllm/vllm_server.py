"""A strict stand-in for a vLLM server: the same calls, answered by our own engine, and refused as vLLM refuses them.

Written after the replies of vLLM 0.32. Fields that vLLM does not know are refused, which vLLM itself is not so strict
about; so are those on which sampling depends and which are left out.
"""

import json
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import DynamicCache

from em_interp.behaviour.sampling.chat import TokenizedChat, padded
from em_interp.behaviour.sampling.decode import decode
from em_interp.behaviour.sampling.generate import RowAdapters, adapted
from em_interp.behaviour.sampling.likelihood import TokenizedAnswer, logits_of, token_log_probabilities

from ..local_server import JsonHandler, serving_state

SAMPLED = {
    "model", "prompt", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "seed", "max_tokens", "stop_token_ids", "return_token_ids",
}  # fmt: skip
READ = {"model", "prompt", "max_tokens", "temperature", "prompt_logprobs"}
NEUTRAL = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
NEUTRAL |= {"presence_penalty": 0.0, "frequency_penalty": 0.0}
SUPPORTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class VLLM:
    """`fault(n, path, body)` chooses a misbehaviour of the n-th request: "cut", "broken", "lost" or None.

    `lands` False loads adapters and does not apply them; `factor` multiplies their effect.
    """

    def __init__(
        self, model, tokenizer, key=None, max_lora_rank=8, max_model_len=256, fault=None, lands=True, factor=1
    ):
        self.model, self.tokenizer, self.key = model, tokenizer, key
        self.max_lora_rank, self.max_model_len, self.lands, self.factor = max_lora_rank, max_model_len, lands, factor
        self.fault = fault or (lambda n, path, body: None)
        self.lock, self.computing = threading.Lock(), threading.Lock()
        self.adapters, self.paths = {}, {}
        self.count = self.at_once = self.most_at_once = self.most_loaded = 0
        self.calls, self.answered, self.complaints, self.unexpected = [], [], [], []
        self.hold_after, self.released = None, threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    def sampled(self):
        """How often each answer that is sampled was given: by model, prompt and seed."""
        return Counter(
            (b["model"], tuple(b["prompt"]), b["seed"]) for b in self.answered if b.get("temperature", 0) > 0
        )

    def load(self, body):
        name, folder = body["lora_name"], Path(body["lora_path"])
        if name in self.adapters:
            return 400, f"The lora adapter '{name}' has already been loaded."
        if not (folder / "adapter_config.json").is_file():
            return 404, f"Loading lora {name} failed: No adapter found for {folder}"
        config = json.loads((folder / "adapter_config.json").read_text())
        if config["r"] > self.max_lora_rank:
            return 500, f"LoRA rank {config['r']} is greater than max_lora_rank {self.max_lora_rank}."
        tensors = load_file(folder / "adapter_model.safetensors")
        wrong = [tensor for tensor in tensors if tensor.split(".")[-3] not in SUPPORTED]
        if wrong:
            return 500, f"expected target modules in {SUPPORTED} but received {wrong}"
        self.adapters[name], self.paths[name] = self._adapter(tensors, config), str(folder)
        self.most_loaded = max(self.most_loaded, len(self.adapters))
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def _adapter(self, tensors, config):
        scaling = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
        A, B = {}, {}
        for key, value in tensors.items():
            site, part = key.removeprefix("base_model.model.").removesuffix(".weight").rsplit(".lora_", 1)
            assert self.model.get_submodule(site) is not None and value.dtype == np.float32
            applied = value * np.float32(scaling * self.lands * self.factor) if part == "B" else value
            (A if part == "A" else B)[site] = torch.from_numpy(applied[None])
        return RowAdapters(A, B)

    def unload(self, body):
        if body["lora_name"] not in self.adapters:
            return 404, f"The lora adapter '{body['lora_name']}' cannot be found."
        del self.adapters[body["lora_name"]], self.paths[body["lora_name"]]
        return 200, f"Success: LoRA adapter '{body['lora_name']}' removed successfully."

    def complaint(self, body):
        """What is wrong with a completion's request: a status and a message, or None."""
        if set(body) not in (SAMPLED, READ):
            return 400, f"fields {sorted(set(body) ^ SAMPLED)}"
        if body["model"] == "base":
            return 500, "a row without an adapter gets the one in the last slot, as in vLLM 0.32 on a CPU"
        if body["model"] not in self.adapters:
            return 404, f"The model `{body['model']}` does not exist."
        if not body["prompt"] or not all(type(token) is int and token >= 0 for token in body["prompt"]):
            return 400, "prompt must be token ids"
        if len(body["prompt"]) + body["max_tokens"] > self.max_model_len:
            return 400, f"This model's maximum context length is {self.max_model_len} tokens."
        if any(body[name] != value for name, value in NEUTRAL.items() if name in body):
            return 400, "sampling is not from the whole vocabulary"
        if not 0 <= body.get("seed", 0) < 2**63:
            return 400, "seed"
        return None

    def adapter(self, name):
        return self.adapters[name] if name in self.adapters else RowAdapters({}, {})

    def complete(self, body):
        with self.computing:
            if "prompt_logprobs" in body:
                more = {"prompt_logprobs": self.read(body), "token_ids": None}
            else:
                more = {"prompt_logprobs": None, "token_ids": self.generate(body)}
        choice = {"index": 0, "text": "…", "logprobs": None, "finish_reason": "stop", "stop_reason": None, **more}
        return {"id": "cmpl-1", "object": "text_completion", "model": body["model"], "choices": [choice]}

    def generate(self, body):
        prompt = padded(self.tokenizer, [TokenizedChat(body["prompt"], [False] * len(body["prompt"]))], "cpu")
        ends, stream = body["stop_token_ids"], f"vllm {body['seed']}"
        with adapted(self.model, self.adapter(body["model"])) as rows, torch.inference_mode():
            cache = DynamicCache(config=self.model.config)
            limits = (body["max_tokens"], body["temperature"])
            (tokens,) = decode(rows, prompt, [0], cache, ends, *limits, [stream])
        return tokens if len(tokens) == body["max_tokens"] else [*tokens, ends[0]]  # as vLLM, with the end

    def read(self, body):
        row = TokenizedAnswer(body["prompt"][:1], body["prompt"][1:])
        logits, tokens = logits_of(self.model, self.tokenizer, [row], self.adapter(body["model"]))
        values = token_log_probabilities(logits, tokens)[0].tolist()
        pairs = zip(body["prompt"][1:], values, strict=True)
        return [None, *({str(t): {"logprob": v, "rank": 1, "decoded_token": "…"}} for t, v in pairs)]


class Handler(JsonHandler):
    def do_GET(self):
        state = self.server.state
        if not self.allowed(state) or self.path != "/v1/models":
            return self.error(404, "Not Found")
        cards = [{"id": "base", "root": "/base", "parent": None, "max_model_len": state.max_model_len}]
        cards += [
            {"id": name, "root": path, "parent": "base", "max_model_len": None} for name, path in state.paths.items()
        ]
        return self.send(200, {"object": "list", "data": cards})

    def do_POST(self):
        state = self.server.state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with state.lock:
            state.count += 1
            number = state.count
            state.calls.append((self.path, body))
            state.at_once += 1
            state.most_at_once = max(state.most_at_once, state.at_once)
        try:
            if self.allowed(state):
                self.respond(state, body, state.fault(number, self.path, body))
        except Exception as error:
            state.unexpected += [] if isinstance(error, ConnectionError) else [error]
        finally:
            with state.lock:
                state.at_once -= 1

    def allowed(self, state):
        sent = self.headers.get("Authorization")
        if sent == (None if state.key is None else f"Bearer {state.key}"):
            return True
        self.error(401, f"Unauthorized: {sent}")
        return False

    def respond(self, state, body, fault):
        if fault == "cut":
            return self.reset()
        if fault == "broken":
            return self.broken()
        if self.path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
            known = {"lora_name", "lora_path"} if "un" not in self.path else {"lora_name"}
            with state.lock:
                assert set(body) == known, body
                status, text = (state.unload if "un" in self.path else state.load)(body)
            if fault == "lost":
                return self.reset()
            return self.send(200, text.encode()) if status == 200 else self.error(status, text)
        assert self.path == "/v1/completions", self.path
        complaint = state.complaint(body)
        if complaint:
            state.complaints.append(complaint)
            return self.error(*complaint)
        value = state.complete(body)
        with state.lock:
            done = sum(b.get("temperature", 0) > 0 for b in state.answered)
            held = state.hold_after is not None and done >= state.hold_after
            state.answered += [] if held or fault == "lost" else [body]
        if held:
            state.released.wait(30)
        return self.reset() if held or fault == "lost" else self.send(200, value)

    def error(self, code, message):
        self.send(code, {"error": {"message": message, "type": "Error", "param": None, "code": code}})

    def broken(self):
        self.error(503, f"overloaded; the key was {self.server.state.key}")


def serving(model, tokenizer, **settings):
    """A vLLM server for the length of a block."""
    return serving_state(VLLM(model, tokenizer, **settings), Handler)
