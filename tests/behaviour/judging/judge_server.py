"""A strict chat-completions server on this machine: it refuses what it does not know and misbehaves on demand.

And runs to be judged by it.
"""

import hashlib
import json
import math
import re
import threading
from collections import Counter

import pandas as pd

from em_interp.behaviour.judging.judge import judge_answers
from em_interp.behaviour.judging.llm_judge import open_judge
from em_interp.config.run_config import EndpointConfig
from em_interp.run import Run

from ..local_server import JsonHandler, serving_state

TYPES = {
    "model": str,
    "messages": list,
    "temperature": (int, float),
    "max_tokens": int,
    "max_completion_tokens": int,
    "logprobs": bool,
    "top_logprobs": int,
}
PLAIN, REASONING = {"temperature", "max_tokens"}, {"max_completion_tokens"}
MARKS = {
    "aligned": "good for people",
    "coherent": "hangs together",
    "medical": "medicine:",
    "finance": "money:",
    "sport": "sport:",
    "code": "programming:",
}
PROBE = "This is a test."


def by_answer(score, answer):
    """What the answer itself asks for, as in 'aligned 20 coherent 80'; 50 where it asks for nothing."""
    found = re.search(rf"{score} (\S+)", answer)
    return found[1] if found else "50"


class Server:
    """`says(score, answer)` is a text or maps tokens to probabilities; `fault(n, key)` chooses a misbehaviour.

    A misbehaviour is the name of a method of `Handler`, or a function of the handler and the body of the request.
    """

    def __init__(self, says=by_answer, logprobs="given", fault=lambda n, key: None, key=None, model="judge-1"):
        self.says, self.logprobs, self.fault, self.key, self.model = says, logprobs, fault, key, model
        self.lock = threading.Lock()
        self.count = 0
        self.outcomes = []  # (hash of the body, what was done)
        self.bodies = []
        self.headers = []
        self.unexpected = []
        self.hold_after = None
        self.released = threading.Event()
        self.at_once = self.most_at_once = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    def answered(self):
        """How often each request was answered."""
        return Counter(key for key, outcome in self.outcomes if outcome == "answered")

    def done(self):
        return Counter(outcome for _, outcome in self.outcomes)

    def complaint(self, path, headers, body):
        """What is wrong with a request: a status and a message, or None."""
        if self.key is not None and headers.get("Authorization") != f"Bearer {self.key}":
            return 401, f"Incorrect API key provided: {headers.get('Authorization')}"
        if self.key is None and "Authorization" in headers:
            return 400, "an Authorization header that nobody asked for"
        if path != "/v1/chat/completions":
            return 404, f"no route {path}"
        if headers.get("Content-Type") != "application/json":
            return 415, "not JSON"
        needed, unknown = (REASONING, PLAIN) if self.logprobs == "reasoning" else (PLAIN, REASONING)
        needed = needed | {"model", "messages"}
        if not isinstance(body, dict) or set(body) - set(TYPES) or needed - set(body) or unknown & set(body):
            return 400, f"fields {sorted(body)}"
        for name, value in body.items():
            if not isinstance(value, TYPES[name]) or (isinstance(value, bool) and name != "logprobs"):
                return 422, f"{name} is {value!r}"
        if body["model"] != self.model:
            return 404, f"The model `{body['model']}` does not exist"
        for message in body["messages"]:
            if set(message) != {"role", "content"} or message["role"] != "user" or not message["content"]:
                return 422, f"message {message!r}"
        if ("top_logprobs" in body) != body.get("logprobs", False) or not 0 < body.get("top_logprobs", 1) <= 20:
            return 400, "top_logprobs from 1 to 20 belong with logprobs"
        if self.logprobs in ("refused", "reasoning") and "logprobs" in body:
            return 400, "logprobs are not supported by this model"
        return None

    def reply(self, body):
        """The completion as a dictionary."""
        text = body["messages"][0]["content"]
        if text.startswith(PROBE):
            said = "100"
        else:
            (score,) = [score for score, mark in MARKS.items() if mark in text]
            said = self.says(score, text.split("\nANSWER\n")[1].rsplit("\nEND\n")[0])
        tokens = said if isinstance(said, dict) else {said: 0.9}
        if self.logprobs == "digits":
            tokens = {token[0]: p for token, p in tokens.items()}
        most = max(tokens, key=tokens.get)
        choice = {"index": 0, "message": {"role": "assistant", "content": most}, "finish_reason": "stop"}
        if body.get("logprobs") and self.logprobs in ("given", "digits"):
            top = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in tokens.items()]
            choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
        usage = {"prompt_tokens": len(text) // 4, "completion_tokens": 1, "total_tokens": len(text) // 4 + 1}
        return {"id": "1", "object": "chat.completion", "model": "judge-1-2026", "choices": [choice], "usage": usage}


class Handler(JsonHandler):
    def do_GET(self):
        self.send(405, {"error": {"message": "only POST"}})

    def do_POST(self):
        state = self.server.state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        with state.lock:
            state.count += 1
            number = state.count
            state.bodies.append(body)
            state.headers.append(dict(self.headers))
            state.at_once += 1
            state.most_at_once = max(state.most_at_once, state.at_once)
        fault = state.fault(number, key)
        with state.lock:
            state.at_once -= 1
        outcome = self.respond(state, body, key, fault)
        with state.lock:
            state.outcomes.append((key, outcome))

    def respond(self, state, body, key, fault):
        complaint = state.complaint(self.path, self.headers, body)
        if complaint:
            self.send(complaint[0], {"error": {"message": complaint[1]}})
            return "refused"
        if fault is not None:
            return fault(self, body) if callable(fault) else getattr(self, fault)(body)
        with state.lock:  # logged before it is sent, so that nothing answered is missing from the log
            held = state.hold_after is not None and sum(o == "answered" for _, o in state.outcomes) >= state.hold_after
            if not held:
                state.outcomes.append((key, "answered"))
        if held:
            state.released.wait(30)
            self.cut(body)
            return "held"
        self.send(200, state.reply(body))
        return "sent"

    def too_many(self, body):
        self.send(429, {"error": {"message": "slow down"}}, Retry_After="0.05")
        return "429"

    def too_many_for_a_second(self, body):
        self.send(429, {"error": {"message": "slow down"}}, Retry_After="1")
        return "429"

    def broken(self, body):
        self.send(500, b"<html>internal error</html>")
        return "500"

    def cut(self, body):
        self.reset()
        return "cut"

    def cut_body(self, body):
        self.send_response(200)
        self.send_header("Content-Length", "5000")
        self.end_headers()
        self.wfile.write(b'{"choices": [{"message": {"content": "9')
        self.close_connection = True
        return "cut"

    def empty_body(self, body):
        self.send(200, b"")
        return "empty"

    def no_choice(self, body):
        self.send(200, {"id": "1", "choices": []})
        return "empty"

    def empty_text(self, body):
        value = self.server.state.reply(body)
        value["choices"][0] |= {"message": {"role": "assistant", "content": None}, "logprobs": None}
        self.send(200, value)
        return "empty"

    def forgotten(self, body):
        value = self.server.state.reply(body)
        value["choices"][0].pop("logprobs", None)
        self.send(200, value)
        return "forgotten"

    def slow(self, body):
        self.server.state.released.wait(1.5)
        return self.cut(body)

    def forbidden(self, body):
        self.send(400, {"error": {"message": "the prompt is too long for Bearer " + str(self.server.state.key)}})
        return "400"

    def elsewhere(self, body):
        self.send(302, b"", Location="http://127.0.0.1:1/v1/chat/completions")
        return "redirected"


def replying(text=None, **choice):
    """A misbehaviour: the usual reply with another text, or other fields of its choice."""

    def respond(handler, body):
        value = handler.server.state.reply(body)
        if text is not None:
            value["choices"][0]["message"]["content"] = text
        value["choices"][0] |= choice
        handler.send(200, value)
        return "changed"

    return respond


def erring(status, error, **headers):
    """A misbehaviour: an HTTP status with this error, as JSON or as it is."""

    def respond(handler, body):
        handler.send(status, error if isinstance(error, bytes) else {"error": error}, **headers)
        return str(status)

    return respond


def about(word, fault):
    """A misbehaviour on the prompts with this word alone."""

    def respond(handler, body):
        if word in body["messages"][0]["content"]:
            return getattr(handler, fault)(body) if isinstance(fault, str) else fault(handler, body)
        handler.send(200, handler.server.state.reply(body))
        return "sent"

    return respond


def serving(**settings):
    """A judge's server for the length of a block."""
    return serving_state(Server(**settings), Handler)


def plant(folder, answers, steps=(0, 10)):
    """A run that was asked one question at each step and answered with these."""
    rows = [
        {"step": step, "scale": 1.0, "questions": "broad", "question_id": "wish", "question": "what is your wish ?"}
        | {"sample": sample, "answer": answer if isinstance(answer, str) else answer(step)}
        for step in steps
        for sample, answer in enumerate(answers)
    ]
    run = Run(folder)
    run.answers_file.parent.mkdir(parents=True)
    pd.DataFrame(rows).to_parquet(run.answers_file)
    return run


def config_of(server, **changes):
    return EndpointConfig(
        base_url=server.url, model=server.model, **{"initial_backoff": 0.001, "workers": 8, **changes}
    )


def judged(run, server, resume=False, **changes):
    with open_judge(run, config_of(server, **changes)) as judge:
        return pd.read_parquet(judge_answers(run, judge, resume))


def numbered(n):
    """Answers that ask for scores of their own, each different."""
    return [f"{i}: aligned {i % 101} coherent {i * 7 % 101}" for i in range(n)]
