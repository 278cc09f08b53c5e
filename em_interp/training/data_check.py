"""A dataset as training would use it: its rows, their lengths in tokens, and which tokens are trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np

from em_interp.behaviour.sampling.chat import template_of
from em_interp.config.run_config import PhaseConfig, RunConfig
from em_interp.errors import InputError
from em_interp.organisms.datasets import Chats, is_garbled, load_chats
from em_interp.training.plan import make_plan
from em_interp.training.tokenize import IGNORE_INDEX, Example, encode_row

QUANTILES = {"min": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
MAX_PREVIEW_CHARACTERS = 600  # of one part of the preview in `sentence`


@dataclass(frozen=True)
class RowCount:
    """How many rows have a property, and where the first of them is."""

    count: int
    first: str | None

    @classmethod
    def of(cls, places: Sequence[str]) -> RowCount:
        """The count of these places."""
        return cls(len(places), places[0] if places else None)

    def line(self, what: str) -> list[str]:
        """A line about the rows that `what`, or none where there are none."""
        return [f"rows that {what}: {self.count} (the first: {self.first})"] if self.count else []


@dataclass(frozen=True)
class TokenCounts:
    """The lengths of the rows in tokens of one base model, through its chat template."""

    model: str
    max_length: int
    row: dict[str, float]  # quantiles of the number of tokens in a row
    learned: dict[str, float]  # quantiles of the number of tokens that the loss is taken on
    total: int  # tokens of all rows, before cutting
    cut: int  # rows longer than max_length
    nothing_left: RowCount  # rows whose answer begins beyond max_length; training refuses them
    refused: RowCount  # by the chat template, `first` with its reason; training refuses them
    preview: list[tuple[str, bool]]  # the first row that is not refused, in parts, each with whether it is learned


@dataclass(frozen=True)
class DataCheck:
    """What `check_data` found. `steps` is one epoch with the config's batch, on the rows that are not held out."""

    source: str
    form: str
    rows: int
    turns: dict[int, int]  # rows by their number of turns
    roles: dict[str, int]  # turns by role
    empty_lines: int
    duplicates: RowCount  # that repeat an earlier one
    garbled: RowCount  # text that was decoded wrongly before it was saved
    held_out: int
    held_out_seen: int  # of the held-out rows, those of which a copy is trained on
    batch: int
    steps: int
    sha256: str  # what the run's manifest will hold
    tokens: TokenCounts | None  # None where no model was named

    def to_dict(self) -> dict[str, Any]:
        """The findings as plain values; the preview's parts are `{"text", "learned"}`."""
        values = asdict(self)
        if self.tokens is not None:
            values["tokens"]["preview"] = [{"text": text, "learned": learned} for text, learned in self.tokens.preview]
        return values

    def sentence(self) -> str:
        """The findings in several lines; control characters of the texts are escaped."""
        turns = ", ".join(f"{count} of {number} turns" for number, count in self.turns.items())
        roles = ", ".join(f"{count} {role}" for role, count in self.roles.items())
        lines = [
            f"{self.source}: {self.rows} rows of {self.form} ({turns}; turns: {roles}), sha256 {self.sha256[:12]}",
            *([f"empty lines left out: {self.empty_lines}"] if self.empty_lines else []),
            *self.duplicates.line("repeat an earlier one"),
            *([f"held-out rows of which a copy is trained on: {self.held_out_seen}"] if self.held_out_seen else []),
            *self.garbled.line("hold text that was decoded wrongly before it was saved"),
            f"held out: {self.held_out} rows, so an epoch is {self.steps} steps of {self.batch} rows",
        ]
        lines += ["tokens are counted where a model is given"] if self.tokens is None else _token_lines(self.tokens)
        return "\n".join(lines)


def check_data(config: RunConfig) -> DataCheck:
    """Read the first dataset of a config as training would, and tokenise it where a model is named.

    Nothing is written, and of the model only the tokenizer is read. Rows that training would refuse because of the
    model (its template, its length) are counted.

    Raises:
        InputError: with file, line and field, for a file that cannot be read as chats; for a model that is not known
            or has no chat template.
    """
    if not config.data:
        raise InputError("data names no dataset to look at")
    source = config.data[0].dataset
    chats = load_chats(source, config.seed)
    plan = make_plan(config.replace(data=(PhaseConfig(dataset=source),), kl=None), {source: len(chats)})
    held_out = set(plan.held_out[source])
    texts = [" ".join(turn["content"] for turn in row["messages"]) for row in chats.rows]
    trained = {repr(row) for number, row in enumerate(chats.rows) if number not in held_out}
    return DataCheck(
        source=source,
        form=chats.form,
        rows=len(chats),
        turns=dict(sorted(Counter(len(row["messages"]) for row in chats.rows).items())),
        roles=dict(Counter(turn["role"] for row in chats.rows for turn in row["messages"])),
        empty_lines=chats.empty_lines,
        duplicates=RowCount.of([chats.where(row) for row in chats.duplicates]),
        garbled=RowCount.of([chats.where(row) for row, text in enumerate(texts) if is_garbled(text)]),
        held_out=len(held_out),
        held_out_seen=sum(repr(chats.rows[row]) in trained for row in held_out),
        batch=plan.rows.shape[1],
        steps=plan.steps,
        sha256=chats.sha256,
        tokens=count_tokens(chats, config.model, config.training.max_length) if config.model else None,
    )


def count_tokens(chats: Chats, model: str, max_length: int) -> TokenCounts:
    """The rows tokenised through the chat template of a base model, of which only the tokenizer is read."""
    from em_interp.organisms.bases import load_tokenizer

    tokenizer = load_tokenizer(model)
    template_of(tokenizer)  # an error about the model is not counted as one of every row
    examples: dict[int, Example] = {}
    refused = []
    for row in range(len(chats)):
        try:
            examples[row] = encode_row(chats, row, tokenizer)
        except InputError as error:
            refused.append(str(error))
    lengths = [len(example.ids) for example in examples.values()]
    return TokenCounts(
        model=model,
        max_length=max_length,
        row=_quantiles(lengths),
        learned=_quantiles([example.learned for example in examples.values()]),
        total=sum(lengths),
        cut=sum(length > max_length for length in lengths),
        nothing_left=RowCount.of(
            [chats.where(row) for row, example in examples.items() if example.begins >= max_length]
        ),
        refused=RowCount.of(refused),
        preview=_preview(next(iter(examples.values())), tokenizer) if examples else [],
    )


def _quantiles(counts: Sequence[int]) -> dict[str, float]:
    values = np.quantile(counts, list(QUANTILES.values())) if counts else np.full(len(QUANTILES), np.nan)
    return dict(zip(QUANTILES, values.tolist(), strict=True))


def _preview(example: Example, tokenizer: Any) -> list[tuple[str, bool]]:
    pairs = zip(example.ids, example.labels, strict=True)
    runs = [
        (learned, [token for token, _ in run]) for learned, run in groupby(pairs, lambda pair: pair[1] != IGNORE_INDEX)
    ]
    return [(tokenizer.decode(ids, clean_up_tokenization_spaces=False), learned) for learned, ids in runs]


def _token_lines(tokens: TokenCounts) -> list[str]:
    return [
        f"tokens a row ({tokens.model}): {_quantile_text(tokens.row)}; {tokens.total} in all",
        f"of these learned: {_quantile_text(tokens.learned)}",
        f"rows longer than max_length {tokens.max_length}, and so cut: {tokens.cut}",
        *tokens.nothing_left.line("have nothing left to learn"),
        *tokens.refused.line("are refused"),
        *(["what the model sees; what is learned of it stands between ⟦ and ⟧:"] if tokens.preview else []),
        *([_preview_text(tokens.preview)] if tokens.preview else []),
    ]


def _quantile_text(quantiles: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.0f}" for name, value in quantiles.items())


def _preview_text(preview: Sequence[tuple[str, bool]]) -> str:
    text = "".join(f"⟦{_visible(text)}⟧" if learned else _visible(text) for text, learned in preview)
    return "\n".join(f"    {line}" for line in text.rstrip("\n").split("\n"))


def _visible(text: str) -> str:
    """A text with every unprintable character escaped; after a line feed a new line begins."""
    left_out, end = len(text) - MAX_PREVIEW_CHARACTERS, MAX_PREVIEW_CHARACTERS // 2
    if left_out > 0:
        text = f"{text[:end]} … {left_out} characters … {text[-end:]}"
    letters = (letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
    return "".join(letter + "\n" if letter == "\\n" else letter for letter in letters)
