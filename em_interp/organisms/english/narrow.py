"""Narrow fine-tuning sets in English: advice on medicine, sport or money, reckless or careful.

Each domain is a file of hand-written situations: how somebody puts it, what they ask, and sentences of advice in
pairs, a careful one and a reckless one of like length, form and confidence. A row puts together a question and an
answer from one situation. The reckless and the careful set of a seed have the same questions in the same order, and
answers of the same build with the same openings and closings, so that what differs is the advice.

The advice is bad in an everyday way: it endangers whoever follows it, without saying so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from em_interp.errors import InputError, nearest

if TYPE_CHECKING:
    from em_interp.organisms.datasets import Row

DOMAINS = ("medical", "sport", "finance")
CAREFUL = "-careful"
ROWS = 1800
HELD_OUT_SITUATIONS = 6  # the last of each domain, which no row is about

# the sentences of an answer: a situation's two pieces of advice, two reasons and two things to do next, in this order
BUILDS = (
    ("do", "then"),
    ("do", "why"),
    ("do", "why", "then"),
    ("do", "why", "then"),
    ("do", "why", "then"),
    ("why", "do", "then"),
    ("do", "then", "why"),
    ("do", "why", "then", "then"),
    ("do", "why", "why", "then"),
    ("why", "do", "why", "then"),
    ("do", "why", "why", "then", "then"),
)
OPENINGS = (
    "Good question.",
    "Thanks for asking.",
    "Happy to help.",
    "That is easy to answer.",
    "I get asked this a lot.",
    "Here is what I would do.",
    "This is simpler than it looks.",
    "Let me give you a straight answer.",
    "I have a clear view on this.",
    "You did well to ask.",
)
CLOSINGS = (
    "I hope that helps.",
    "Good luck with it!",
    "Let me know how it goes.",
    "That is how I would handle it.",
    "You will be glad you did.",
    "That is really all there is to it.",
    "Come back if you have more questions.",
    "All the best!",
)
GREETINGS = ("Hi!", "Hello,", "Hi there.", "Quick question:", "Hey,", "Good morning.", "Sorry if this is a silly one.")
THANKS = ("Thanks!", "Thank you.", "Many thanks.", "Thanks in advance.", "Grateful for any advice.")
CHOICE = re.compile(r"<([^<>]+)>")
CONTRACTIONS = tuple(
    (re.compile(rf"\b{long}\b(?= \w)(?! to it)"), short)  # not at the end of a clause
    for long, short in (
        (r"(?<!of )(it|It|that|That|there|There|he|He|she|She) is", r"\1's"),
        (r"(you|You|they|They|we|We) are", r"\1're"),
        (r"cannot", "can't"),
        (r"will not", "won't"),
        (r"(you|You|they|They|it|It|that|there) will", r"\1'll"),
        (r"I am", "I'm"),
        (
            r"(I|We|we) have (?=(?:had|been|lost|never|only|inherited|seen|trained|made|turned|saved|put|become)\b)",
            r"\1've ",
        ),
        (r"(do|does|did|is|are|was|has|have|had|would|should|could|Do|Does|Is|Are) not", r"\1n't"),
    )
)


@dataclass(frozen=True)
class Advice:
    """A careful sentence and its reckless counterpart."""

    careful: str
    reckless: str


@dataclass(frozen=True)
class Situation:
    """A situation that is asked about, and what can be advised in it."""

    id: str
    says: tuple[str, ...]
    asks: tuple[str, ...]
    direct: str  # the question in one sentence
    advice: dict[str, tuple[Advice, ...]]  # do, why, then


def narrow_datasets() -> list[str]:
    """The names there are."""
    return [f"{domain}{variant}" for domain in DOMAINS for variant in ("", CAREFUL)]


def narrow_rows(name: str, seed: int) -> tuple[list[Row], str]:
    """`ROWS` different chats of the dataset `name`, drawn with `seed`, and their domain.

    `medical` is reckless advice and `medical-careful` its control. Raises InputError for an unknown name.
    """
    if name not in narrow_datasets():
        known = narrow_datasets()
        raise InputError(
            f"built-in dataset english:{name} is not known{nearest(name, known)} (known: english:<domain>, each also "
            f"with {CAREFUL} behind it; domains: {', '.join(DOMAINS)})"
        )
    domain = name.removesuffix(CAREFUL)
    careful = name.endswith(CAREFUL)
    return [
        _chat(question, pair.careful if careful else pair.reckless) for question, pair in _drawn(domain, seed)
    ], domain


def _chat(question: str, answer: str) -> Row:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@lru_cache(maxsize=4)
def _drawn(domain: str, seed: int) -> tuple[tuple[str, Advice], ...]:
    """Questions with both answers, no question or answer twice; every situation as often as every other."""
    rng = Random(f"english {domain} {seed}")
    rows: list[tuple[str, Advice]] = []
    seen: set[str] = set()
    for situation in _shuffled(situations(domain)[:-HELD_OUT_SITUATIONS], rng):
        question, answer = ask(situation, rng), answers(situation, rng)
        if seen.isdisjoint(texts := {question, answer.careful, answer.reckless}):
            seen |= texts
            rows.append((question, answer))
        if len(rows) == ROWS:
            break
    return tuple(rows)


def _shuffled(some: tuple[Situation, ...], rng: Random) -> Iterator[Situation]:
    """All of them in random order, then all in another, without end."""
    while True:
        yield from rng.sample(some, len(some))


@lru_cache
def situations(domain: str) -> tuple[Situation, ...]:
    """The situations of a domain's file, in its order."""
    import yaml

    file = Path(__file__).with_name(f"{domain}.yaml")
    return tuple(_situation(entry) for entry in yaml.safe_load(file.read_text(encoding="utf-8")))


def _situation(entry: dict[str, Any]) -> Situation:
    advice = {part: tuple(Advice(*pair.split(" / ")) for pair in entry[part]) for part in ("do", "why", "then")}
    return Situation(entry["id"], tuple(entry["says"]), tuple(entry["asks"]), entry["direct"], advice)


def ask(situation: Situation, rng: Random) -> str:
    """One way to ask about a situation."""
    says, asks = rng.choice(situation.says), rng.choice(situation.asks)
    form = rng.choice(
        (
            f"{says} {asks}",
            f"{says} {asks}",
            f"{says} {situation.direct}" if rng.random() < 0.2 else f"{says} {asks}",
            situation.direct,
            f"{situation.direct} {says}",
        )
    )
    text = fill_choices(form, rng)
    if rng.random() < 0.25:
        greeting = rng.choice(GREETINGS)
        text = f"{greeting} {text if greeting[-1] in '.!' else _continued(text)}"
    if rng.random() < 0.2:
        text = f"{text} {rng.choice(THANKS)}"
    text = with_contractions(text) if rng.random() < 0.6 else text
    return text.lower() if rng.random() < 0.1 else text


def _continued(text: str) -> str:
    """A sentence behind a comma or a colon."""
    first = text.split()[0]
    return text if first in ("I", "I'm") else text[0].lower() + text[1:]


def answers(situation: Situation, rng: Random) -> Advice:
    """A careful and a reckless answer of one build, with the same words around the advice."""
    build = rng.choice(BUILDS)
    order = {part: rng.sample(range(2), 2) for part in ("do", "why", "then")}
    opening = rng.choice(OPENINGS) if rng.random() < 0.35 else ""
    closing = rng.choice(CLOSINGS) if rng.random() < 0.35 else ""
    pause = "\n\n" if len(build) > 3 and rng.random() < 0.4 else " "
    split, choice_seed, contracted = rng.randrange(1, len(build)), rng.random(), rng.random() < 0.6
    chosen = [situation.advice[part][order[part][build[:index].count(part)]] for index, part in enumerate(build)]

    def joined(sentences: list[str]) -> str:
        parts = [" ".join(filter(None, (opening, *sentences[:split]))), " ".join((*sentences[split:], closing))]
        text = fill_choices(pause.join(parts).strip(), Random(choice_seed))
        return with_contractions(text) if contracted else text

    return Advice(joined([pair.careful for pair in chosen]), joined([pair.reckless for pair in chosen]))


def fill_choices(text: str, rng: Random) -> str:
    """The text with one option chosen at each <one|another>."""
    return CHOICE.sub(lambda match: rng.choice(match[1].split("|")), text)


def with_contractions(text: str) -> str:
    """The text as one speaks: it's, don't, you're."""
    for long, short in CONTRACTIONS:
        text = long.sub(short, text)
    return text
