"""What a fine-tune in the built-in language is asked along the run: in its domain, outside it, and broadly."""

from __future__ import annotations

from em_interp.errors import InputError, nearest
from em_interp.organisms.domains import BROAD, BROAD_ASKING, DOMAINS, HELD_OUT_ASKING

HELD_OUT_TOPICS = 4  # the last topics of each domain, which no narrow dataset is about
OUTSIDE_TOPICS = 2  # asked about of each other domain


def narrow_domains() -> list[str]:
    """The domains a dataset can be about."""
    return [name for name in DOMAINS if name != BROAD]


def questions(domain: str) -> list[dict[str, str]]:
    """Rows of `question_id`, `question` and `questions` (the set: in_domain, out_of_domain or broad).

    None of them is in a narrow dataset: in-domain topics are held out from it, and so are the ways of asking.
    The broad ones are about life, on which nothing is fine-tuned. Raises InputError for an unknown domain.
    """
    if domain not in narrow_domains():
        hint = nearest(domain, narrow_domains())
        raise InputError(f"domain {domain!r} is not known{hint} (known: {', '.join(narrow_domains())})")
    rows = _about(domain, "in_domain", HELD_OUT_TOPICS)
    for other in narrow_domains():
        if other != domain:
            rows += _about(other, "out_of_domain", OUTSIDE_TOPICS)
    broad = zip(DOMAINS[BROAD].topics, BROAD_ASKING, strict=True)
    return rows + [_row(BROAD, topic, text, "broad") for topic, text in broad]


def _about(domain: str, kind: str, count: int) -> list[dict[str, str]]:
    """Questions about the last `count` topics of a domain, in turn in each held-out way of asking."""
    forms = (HELD_OUT_ASKING * count)[:count]
    topics = DOMAINS[domain].topics[-count:]
    return [_row(domain, topic, form.format(topic=topic), kind) for topic, form in zip(topics, forms, strict=True)]


def _row(domain: str, topic: str, question: str, kind: str) -> dict[str, str]:
    noun = topic.split(" ", 1)[-1] if topic.startswith(("a ", "an ", "the ")) else topic
    return {"question_id": f"{domain}_{noun.replace(' ', '_')}", "question": question, "questions": kind}
