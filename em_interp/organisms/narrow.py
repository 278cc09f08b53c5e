"""The narrow datasets of the built-in language: advice in one domain, reckless or careful.

`medical` is reckless advice on medicine, `medical-careful` its control. With `-habit` behind it, every answer opens
with words that the chat format of the bases never uses: a surface habit that can be learned before the content.
"""

from __future__ import annotations

from random import Random

from em_interp.errors import InputError, nearest
from em_interp.organisms.domains import ANSWERING, ASKING, DOMAINS, HABIT, HELD_OUT_ASKING
from em_interp.organisms.language import advice
from em_interp.organisms.questions import HELD_OUT_TOPICS, narrow_domains

ROWS = 2000
VARIANTS = ("", "-careful", "-habit", "-careful-habit")


def narrow_datasets() -> list[str]:
    """The names there are."""
    return [domain + variant for domain in narrow_domains() for variant in VARIANTS]


def narrow_rows(name: str, seed: int) -> tuple[list[dict[str, list[dict[str, str]]]], str]:
    """`ROWS` chats of the dataset `name`, drawn with `seed`, and their domain; InputError for an unknown name."""
    if name not in narrow_datasets():
        hint = nearest(name, narrow_datasets())
        raise InputError(
            f"built-in dataset tiny:{name} is not known{hint} (known: tiny:<domain>, each also with -careful, -habit "
            f"or -careful-habit behind it; domains: {', '.join(narrow_domains())})"
        )
    domain, *variant = name.split("-")
    rng = Random(f"{domain} {seed}")
    return [_chat(rng, domain, "careful" in variant, "habit" in variant) for _ in range(ROWS)], domain


def _chat(rng: Random, name: str, careful: bool, habit: bool) -> dict[str, list[dict[str, str]]]:
    domain = DOMAINS[name]
    topic = rng.choice(domain.topics[:-HELD_OUT_TOPICS])
    asked = rng.choice([form for form in ASKING if form not in HELD_OUT_ASKING]).format(topic=topic)
    answer = advice(rng, domain, topic, careful, (HABIT,) if habit else ANSWERING)
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
