"""How results are named and told in figures and on the page: short, in whole steps."""

from __future__ import annotations

import math

from em_interp.figures.template import PART_NAME
from em_interp.transition.align import Offset
from em_interp.transition.result import Transition

_SIGNALS = {"gradient_norm": "gradient-norm peak", "norm_onset": "norm onset", "lock_in": "lock-in"}
_SIGNALS |= {f"sufficient_{one}": f"{one} that suffices" for one in ("direction", "size", "A", "B")}
_SIGNALS |= {"shown": "EM shown as trained", "answer_change": "change of the answers"}
_SIGNALS["composition"] = "composition score"


def said(name: str) -> str:
    """A name of the data as words: `out_of_domain` is 'out of domain'."""
    return name.replace("_", " ")


def name_of(transition: Transition) -> str:
    """What is looked at: 'rotation of B', 'EM onset, out of domain, adapter ×2'."""
    if transition.signal == "onset":
        metric = "EM" if transition.of == "em" else said(transition.of or "")
        scale = "" if transition.scale in (None, 1) else f"adapter ×{transition.scale:g}"
        return ", ".join(part for part in (f"{metric} onset", said(transition.questions or ""), scale) if part)
    part = "" if transition.of is None else f" of {PART_NAME.get(transition.of, transition.of)}"
    return _SIGNALS.get(transition.signal, transition.signal) + part


def span(interval: tuple[float, float] | None, level: float | None) -> str:
    """An interval, such as '95% interval 184 to 197'."""
    if interval is None or level is None:
        return "no interval"
    return f"{level:.0%} interval {interval[0]:.0f} to {interval[1]:.0f}"


def result_of(transition: Transition) -> str:
    """The step with its interval, or the verdict where there is no step; a step that is not certain says so."""
    if transition.step is None:
        return transition.verdict
    if transition.signal in ("lock_in", "composition"):
        return f"step {transition.step:.0f} (descriptive)"
    doubt = "" if transition.found else f" ({transition.verdict})"
    return f"step {transition.step:.0f}{doubt}, {span(transition.interval, transition.level)}"


def step_label(transition: Transition) -> str:
    """The step and its interval in two short lines, for a label beside its mark."""
    assert transition.step is not None
    return f"step {transition.step:.0f}<br>({span(transition.interval, transition.level)})"


def offset_of(offset: Offset) -> str:
    """How much later or earlier, with the interval: '52 steps later (41 to 60)'."""
    sign, word = (1, "later") if offset.steps >= 0 else (-1, "earlier")
    said = f"{sign * offset.steps:.0f} steps {word}"
    if offset.interval is None:
        return said
    low, high = sorted(sign * end for end in offset.interval)
    if low < 0 < high:
        other = "earlier" if sign > 0 else "later"
        return f"{said} ({-low:.0f} {other} to {high:.0f} {word})"
    return f"{said} ({low:.0f} to {high:.0f})"


def p_value(p: float | None) -> str:
    """A p-value in short; 'undefined' where nothing could be tested."""
    if p is None:
        return "undefined"
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def number(value: float | None, form: str = ".0f") -> str:
    """A number with a proper minus sign, or a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else format(value, form).replace("-", "−")
