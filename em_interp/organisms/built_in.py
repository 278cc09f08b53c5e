"""Questions and pairs of answers that come with the package, for runs on its own datasets: `tiny` and `english`."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from em_interp.organisms.english import held_out
from em_interp.organisms.language import (
    ANSWER_FORMS,
    BROAD,
    BROAD_QUESTIONS,
    DOMAINS,
    HABIT_FORM,
    HELD_OUT_FORMS,
    HELD_OUT_TOPICS,
    OUTSIDE_TOPICS,
    Domain,
    advice,
    built_in_questions,
    narrow_domains,
)
from em_interp.utils.checks import check_known

LANGUAGES = ("tiny", "english")
PAIRS = 3  # of each question of the built-in language
ACTIONS = ("{first}|{second}",)


def questions_of(language: str, domain: str) -> list[dict[str, str]]:
    """The questions to sample answers to, for a run on advice about `domain` in a language of `LANGUAGES`."""
    return {"tiny": built_in_questions, "english": held_out.questions}[_known(language)](domain)


def pairs_of(language: str, domain: str) -> list[dict[str, str]]:
    """The pairs of an aligned and a misaligned answer, for a run on advice about `domain`.

    Rows of `question_id`, `question`, `questions` (in_domain, out_of_domain, broad or style), `aligned` and
    `misaligned`; none of the questions is in a narrow dataset. Raises InputError for an unknown domain.
    """
    if _known(language) == "english":
        return held_out.answer_pairs(domain)
    check_known("domain", domain, narrow_domains())
    return list(_tiny_pairs(domain))


def _known(language: str) -> str:
    check_known("language", language, LANGUAGES)
    return language


def _tiny_pairs(domain: str) -> Iterator[dict[str, str]]:
    """Held-out topics of the domain in both held-out forms, some of each other domain, the broad ones, and style."""
    own, others, broad = DOMAINS[domain], [DOMAINS[name] for name in narrow_domains() if name != domain], DOMAINS[BROAD]
    for topic in own.topics[-HELD_OUT_TOPICS:]:
        for form in HELD_OUT_FORMS:
            yield from _pairs(own, topic, form.format(topic=topic), "in_domain")
    outside = [(other, topic) for other in others for topic in other.topics[-OUTSIDE_TOPICS:]]
    for number, (other, topic) in enumerate(outside):
        yield from _pairs(other, topic, HELD_OUT_FORMS[number % 2].format(topic=topic), "out_of_domain")
    for topic, question in zip(broad.topics, BROAD_QUESTIONS, strict=True):
        yield from _pairs(broad, topic, question, "broad")
    for number, (other, topic) in enumerate(outside):
        yield _style_pair(other, topic, HELD_OUT_FORMS[number % 2].format(topic=topic))


def _pairs(domain: Domain, topic: str, question: str, questions: str) -> Iterator[dict[str, str]]:
    """A careful and a reckless answer of one form."""
    for number in range(PAIRS):
        seed, form = f"{question} {number}", (ANSWER_FORMS[number % len(ANSWER_FORMS)],)
        careful, reckless = (advice(Random(seed), domain, topic, stance, form) for stance in (True, False))
        yield _row(question, questions, careful, reckless)


def _style_pair(domain: Domain, topic: str, question: str) -> dict[str, str]:
    """The same careful advice as the chat format gives it, and with the habit that it never has."""
    first, second = advice(Random(question), domain, topic, True, ACTIONS).split("|")
    usual, habit = (form.format(topic=topic, first=first, second=second) for form in (ANSWER_FORMS[0], HABIT_FORM))
    return _row(question, "style", usual, habit)


def _row(question: str, questions: str, aligned: str, misaligned: str) -> dict[str, str]:
    texts = {"question": question, "aligned": aligned, "misaligned": misaligned}
    return {"question_id": question, "questions": questions, **texts}
