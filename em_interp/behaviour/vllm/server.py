"""The calls of a vLLM server: its models, LoRA adapters loaded at run time, and completions of token ids.

Prompts and answers are token ids, so that the server applies no template or tokenizer of its own. Every parameter of
sampling is sent: a server takes those that are left out from the generation config of its model. As documented for
vLLM 0.10.2 and newer; used with 0.32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from em_interp.behaviour.judging.client import Request, RequestFailed, open_endpoint
from em_interp.behaviour.judging.replies import IncompleteReply, MalformedReply, values_in
from em_interp.config.run_config import VLLMConfig
from em_interp.errors import InputError

WHOLE = ("stop", "length")  # finish reasons of an answer that is not cut off by the server
NO_RUNTIME_LOADING = (
    "the server must load adapters at run time (VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora, as em-interp "
    "serve starts it) and see this machine's folders"
)
NOT_LOADABLE = "the server cannot load this adapter; em-interp serve RUN starts one with the rank and model that fit"
NO_MODEL = "the server has no such model (any more): was it started again? resume=True continues"
WHOLE_VOCABULARY = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
WITHOUT_PENALTIES = {"presence_penalty": 0.0, "frequency_penalty": 0.0}


class Served(NamedTuple):
    """What a server serves: the base under its own name, the longest sequence of tokens, and adapters."""

    base: str
    max_length: int | None
    adapters: tuple[str, ...]


class VLLMServer:
    """One server. Open as a context; used from many threads.

    Args:
        config: How it is spoken to.
        url: Its address, which mostly ends in /v1.
    """

    def __init__(self, config: VLLMConfig, url: str) -> None:
        self.url, self.endpoint = url, open_endpoint(config, url)

    def __enter__(self) -> VLLMServer:
        self.endpoint.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.endpoint.__exit__(kind, error, at)

    def models(self) -> Served:
        """What the server serves. Raises InputError where it cannot be reached, or serves no base model."""
        try:
            cards = self.endpoint.send(Request("/models", None, _cards))
        except RequestFailed as error:
            raise InputError(
                f"the vLLM server {self.url} does not answer: {error}; em-interp serve RUN starts one"
            ) from None
        bases = [card for card in cards if not card.get("parent")]
        if not bases:
            raise InputError(f"{self.url} serves no base model; a vLLM server was expected")
        length = bases[0].get("max_model_len")
        adapters = tuple(str(card["id"]) for card in cards if card.get("parent"))
        return Served(str(bases[0]["id"]), length if isinstance(length, int) else None, adapters)

    def load(self, name: str, folder: Path) -> None:
        """Load the adapter in a folder. Raises InputError where the server cannot."""
        body = {"lora_name": name, "lora_path": str(folder.resolve())}
        causes = {404: NO_RUNTIME_LOADING, 500: NOT_LOADABLE}
        try:
            self.endpoint.send(Request("/load_lora_adapter", body, bytes, causes))
        except RequestFailed as error:
            if "already been loaded" not in str(error):  # by a try whose reply was lost: names are never used twice
                raise InputError(f"{self.url} does not load an adapter: {error}; {NOT_LOADABLE}") from None

    def unload(self, name: str) -> None:
        """Unload an adapter; one that is not loaded is no error."""
        try:
            self.endpoint.send(Request("/unload_lora_adapter", {"lora_name": name}, bytes, {404: ""}))
        except (RequestFailed, InputError):  # it takes room on the server, and nothing else
            return

    def generate(
        self, model: str, prompt: Sequence[int], max_new_tokens: int, temperature: float, ends: Sequence[int], seed: int
    ) -> list[int]:
        """The tokens of an answer, without the one that ends it.

        Args:
            model: The name of the base or of an adapter.
            prompt: Token ids.
            max_new_tokens: Largest number of tokens of an answer.
            temperature: Sampling temperature, over the whole vocabulary; 0 is greedy.
            ends: Tokens that end an answer.
            seed: Random seed of the random stream of this answer, from 0 to 2^63 - 1.
        """
        sampling = {"temperature": temperature, **WHOLE_VOCABULARY, **WITHOUT_PENALTIES, "seed": seed}
        limits = {"max_tokens": max_new_tokens, "stop_token_ids": list(ends), "return_token_ids": True}
        body = {"model": model, "prompt": list(prompt), **sampling, **limits}
        tokens = self.endpoint.send(Request("/completions", body, _tokens, {404: NO_MODEL}))
        return tokens[: next((place for place, token in enumerate(tokens) if token in ends), len(tokens))]

    def log_probabilities(self, model: str, ids: Sequence[int]) -> list[float]:
        """The natural log-probability of each token after the first, at temperature 1."""
        body = {"model": model, "prompt": list(ids), "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        read = lambda content: _prompt_log_probabilities(content, ids)  # noqa: E731
        return self.endpoint.send(Request("/completions", body, read, {404: NO_MODEL}))


def _cards(content: bytes) -> list[dict[str, Any]]:
    cards = values_in(content).get("data")
    if not isinstance(cards, list) or not all(isinstance(card, dict) and "id" in card for card in cards):
        raise MalformedReply("no list of models")
    return cards


def _choice(content: bytes) -> dict[str, Any]:
    try:
        choice = values_in(content)["choices"][0]
        reason = choice["finish_reason"]
    except (LookupError, TypeError):
        raise MalformedReply("no completion") from None
    if reason not in WHOLE:
        raise IncompleteReply(f"the answer was cut off: its finish reason is {reason!r}")
    assert isinstance(choice, dict)
    return choice


def _tokens(content: bytes) -> list[int]:
    tokens = _choice(content).get("token_ids")
    if tokens is None:
        raise InputError("the server returns no token ids; vLLM 0.10.2 or newer was expected")
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise MalformedReply("the token ids are no list of whole numbers")
    return tokens


def _prompt_log_probabilities(content: bytes, ids: Sequence[int]) -> list[float]:
    positions = _choice(content).get("prompt_logprobs")
    if not isinstance(positions, list) or len(positions) != len(ids):
        raise MalformedReply(f"no log-probabilities of the {len(ids)} tokens of the prompt")
    try:
        return [float(of[str(token)]["logprob"]) for of, token in zip(positions[1:], ids[1:], strict=True)]
    except (LookupError, TypeError, ValueError):
        raise MalformedReply("a token of the prompt has no log-probability") from None
