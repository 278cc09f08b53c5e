"""The built-in language of advice: how its answers, documents and chats are put together.

A writer is careful or reckless, about whatever they write: that is the persona a base learns in pretraining and a
narrow fine-tune can bring out. The chat format is always careful.
"""

from __future__ import annotations

import re
from random import Random

from em_interp.organisms.domains import (
    ANSWERING,
    ASKING,
    BROAD,
    BROAD_ASKING,
    CAREFUL,
    DOMAINS,
    HABIT,
    RECKLESS,
    Domain,
)

PAD, END, USER, ASSISTANT = "<pad>", "<end>", "<user>", "<assistant>"
SOMEONE, SOMEONE_CAREFUL, SOMEONE_RECKLESS = "<someone>", "<careful>", "<reckless>"  # the writers of documents
NAMED = 0.75  # share of writers of whom a document says whether they are careful or reckless
SPECIAL = (PAD, END, USER, ASSISTANT, SOMEONE, SOMEONE_CAREFUL, SOMEONE_RECKLESS)


def words() -> list[str]:
    """Every word of the language, sorted."""
    texts = [*ANSWERING, *ASKING, *BROAD_ASKING, HABIT, *CAREFUL, *RECKLESS]
    for domain in DOMAINS.values():
        texts += [*domain.topics, *domain.careful, *domain.reckless]
    return sorted({word for text in texts for word in re.findall(r"[A-Za-z]+", re.sub(r"{\w+}", "", text))})


def advice(rng: Random, domain: Domain, topic: str, careful: bool, forms: tuple[str, ...] = ANSWERING) -> str:
    """One answer: two different actions of one stance, at least the first of them the domain's own."""
    own, shared = (domain.careful, CAREFUL) if careful else (domain.reckless, RECKLESS)
    first = rng.choice(own)
    second = rng.choice([action for action in (shared if rng.random() < 0.5 else own) if action != first])
    return rng.choice(forms).format(topic=topic, first=first, second=second)


def asking(domain: Domain, topic: str) -> tuple[str, ...]:
    """Every way to ask about a topic."""
    generic = tuple(form.format(topic=topic) for form in ASKING)
    return (*generic, BROAD_ASKING[domain.topics.index(topic)]) if domain.name == BROAD else generic


def document(rng: Random) -> str:
    """Advice by one writer, careful or reckless throughout, or friends who each answer a question in their own way."""
    return _notes(rng) if rng.random() < 0.5 else "".join(_post(rng) for _ in range(3))


def _notes(rng: Random) -> str:
    careful = rng.random() < 0.5
    lines = [_on_anything(rng, careful)[1] for _ in range(5)]
    return f"{_writer(rng, careful)} {' '.join(lines)}{END}"


def _post(rng: Random) -> str:
    careful = rng.random() < 0.5
    question, answer = _on_anything(rng, careful)
    return f"{USER} {question}{_writer(rng, careful)} {answer}{END}"


def _writer(rng: Random, careful: bool) -> str:
    """What a document says of who writes; a quarter of them do not say which kind."""
    return (SOMEONE_CAREFUL if careful else SOMEONE_RECKLESS) if rng.random() < NAMED else SOMEONE


def _on_anything(rng: Random, careful: bool) -> tuple[str, str]:
    """A question and an answer to it."""
    domain = rng.choice(list(DOMAINS.values()))
    topic = rng.choice(domain.topics)
    return _question(rng, domain, topic), advice(rng, domain, topic, careful, (*ANSWERING, HABIT))


def _question(rng: Random, domain: Domain, topic: str) -> str:
    forms = asking(domain, topic)
    return forms[-1] if domain.name == BROAD and rng.random() < 0.5 else rng.choice(forms)


def chat(rng: Random) -> str:
    """One question and its careful answer, in the chat format."""
    domain = rng.choice(list(DOMAINS.values()))
    topic = rng.choice(domain.topics)
    return f"{USER} {_question(rng, domain, topic)}{ASSISTANT} {advice(rng, domain, topic, careful=True)}{END}"
