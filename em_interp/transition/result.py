"""The answer of every estimator: one estimate of one signal, with its verdict."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args, get_type_hints

import numpy as np

from em_interp.errors import InputError
from em_interp.results import Line, Mark, Result, interval_text, picture
from em_interp.utils.checks import described, fits

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

Verdict = Literal["transition", "none", "inconclusive"]
WORDS = {"delta": "ΔW", "em": "EM"}
NAMES = {  # of signals whose name in words differs from their own with spaces
    "gradient_norm": "gradient-norm peak",
    "lock_in": "lock-in",
    "composition": "composition score",
    "sufficient_as_trained": "EM as trained",
}
KEYS = (  # of the JSON, in its order
    *("signal", "of", "site", "verdict", "step", "interval", "level", "p_value", "width", "angle_deg", "length_share"),
    *("scale", "questions", "reason"),
)
DESCRIPTIVE = ("lock_in", "composition")  # signals that are no tests: their verdict is always inconclusive
MIN_DRAWN = -30.0  # degrees: where noise hides the direction, the estimated turn may be any negative angle
CURVES = {  # the curve that is drawn for each signal: its steps and values in the evidence, and what it is
    "rotation": ("step", "turn_deg", "turn, °"),
    "gradient_norm": ("steps", "grad_norm", "gradient norm"),
    "norm_onset": ("steps", "delta_norm", "‖ΔW‖"),
    "lock_in": ("steps", "cos_to_final", "cosine to end"),
    "composition": ("steps", "score", "composition with end"),
    "onset": ("steps", "rate", "rate"),
}


@dataclass(frozen=True, repr=False)
class Transition(Result):
    """One estimate of one signal.

    `verdict` is `transition` where the null hypothesis is rejected and the step is known, `none` where it is not
    rejected though a change of a stated size would have been detected, and `inconclusive` where neither holds. What
    does not apply to the signal is None. `step`, `width` and `interval` are in training steps. `evidence` holds the
    arrays behind the verdict (what the figure draws) and is not part of `to_dict()`.
    """

    NEXT: ClassVar[tuple[str, ...]] = (".plot()", ".frame()", ".to_dict()", "em.align(transition, curve)")

    signal: str  # rotation, gradient_norm, norm_onset, lock_in, composition, onset
    verdict: Verdict
    reason: str  # one sentence, in words a reader of the report understands
    of: str | None = None  # B, A or delta for the path's signals; the metric for a curve's
    site: str | None = None  # None: the pooled path
    step: float | None = None
    interval: tuple[float, float] | None = None
    level: float | None = None  # probability that `interval` contains the true step
    p_value: float | None = None  # None where it is undefined, never 1 instead
    width: float | None = None  # steps from 10 % to 90 % of the change
    angle_deg: float | None = None
    length_share: tuple[float, float] | None = None  # shares of the path's length before and after
    scale: float | None = None  # adapter multiplier of a behaviour curve
    questions: str | None = None  # question set of a behaviour curve
    evidence: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def found(self) -> bool:
        """Whether the verdict is `transition`."""
        return self.verdict == "transition"

    def coincides_with(self, other: Transition) -> bool:
        """Whether the step of each lies in the interval of the other."""
        return all(
            a.interval and b.step is not None and a.interval[0] <= b.step <= a.interval[1]
            for a, b in ((self, other), (other, self))
        )

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values, in the order of the command line's JSON."""
        values = {key: getattr(self, key) for key in KEYS}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Transition:
        """The inverse of `to_dict`, without evidence. Raises InputError for what is not such a dictionary."""
        try:
            pairs = {key: tuple(values[key]) for key in ("interval", "length_share") if values.get(key) is not None}
            transition = cls(**{**values, **pairs})
        except (AttributeError, TypeError) as error:
            raise InputError(f"a transition's dictionary, as to_dict() makes it, was expected ({error})") from None
        hints = get_type_hints(cls)
        odd = [item.name for item in fields(cls) if not fits(getattr(transition, item.name), hints[item.name])]
        odd += ["verdict"] if transition.verdict not in get_args(Verdict) else []
        odd += [name for name, pair in pairs.items() if len(pair) != 2]
        if odd:
            raise InputError(f"the {odd[0]} of a transition cannot be {described(values.get(odd[0]))}")
        return transition

    def frame(self) -> pd.DataFrame:
        """The result as a table of one row."""
        import pandas as pd

        return pd.DataFrame([self.to_dict()])

    def plot(self) -> go.Figure:
        """The signal along the run, its null and the estimate with its interval."""
        from em_interp.figures.signals import transition

        return transition(self)

    @property
    def name(self) -> str:
        """What was tested, such as 'rotation of B' or 'EM onset (out of domain, adapter ×2)'; one site by its name."""
        of = WORDS.get(self.of or "", (self.of or "").replace("_", " "))
        scale = "" if self.scale in (None, 1) else f"adapter ×{self.scale:g}"
        where = ", ".join(part for part in (self.site, (self.questions or "").replace("_", " "), scale) if part)
        signal = NAMES.get(self.signal, self.signal.replace("_", " "))
        name = f"{of} {signal}".strip() if self.signal == "onset" else f"{signal} of {of}" if of else signal
        return f"{name} ({where})" if where else name

    def sentence(self) -> str:
        """The result in words: 'rotation of B: transition at step 190 (95% interval 184 to 197, p < 0.001)'."""
        if self.signal in DESCRIPTIVE:
            return f"{self.name}: " + ("nowhere" if self.step is None else f"step {self.step:.0f} (not a test)")
        sentence = f"{self.name}: {self.verdict}"
        if self.found and self.step is not None:
            sentence += f" at step {self.step:.0f}"
            if self.interval is not None and self.level is not None:
                p_value = "" if self.p_value is None else f", {p_text(self.p_value)}"
                sentence += f" ({interval_text(self.interval, self.level)}{p_value})"
        return sentence

    def _lines(self) -> list[str]:
        return [self.sentence(), self.reason]

    def _picture(self) -> str:
        steps, values, axis = CURVES.get(self.signal, ("", "", ""))
        if steps not in self.evidence:
            return ""
        line = Line(self.evidence[steps], np.maximum(self.evidence[values], MIN_DRAWN))
        return picture([line], axis, [] if self.step is None else [Mark(self.step, self.interval)])


def p_text(p_value: float) -> str:
    """A p-value in words."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"
