import numpy as np
import pandas as pd

from em_interp.figures.mechanism.answer_shift import plot_answer_shift
from em_interp.transition.result import Transition
from tests.figures.reading import lines, texts, trace

PEAK = Transition("answer_shift", "transition", "the largest divergence", step=60.0, interval=(50.0, 70.0))


def profile():
    steps = np.arange(20, 120, 20)
    divergence = np.exp(-(((steps - 60) / 30) ** 2))
    ends = {"divergence_low": divergence - 0.1, "divergence_high": divergence + 0.1}
    return pd.DataFrame({"step": steps, "divergence": divergence, **ends, "permuted_max": 0.2, "answers": 40})


def shares(names=("outcome", "length"), share=(0.8, 0.3)):
    share = np.array(share)
    ends = {"share_low": share - 0.1, "share_high": share + 0.1, "null": 0.05}
    return pd.DataFrame({"step": 60.0, "property": list(names), "share": share, **ends})


def test_the_peak_is_marked_and_the_shares_are_in_per_cent():
    figure = plot_answer_shift(profile(), PEAK, shares())
    assert lines(figure) == [60.0]
    assert trace(figure, "left against right").y.tolist() == profile()["divergence"].tolist()
    points = trace(figure, "share accounted for")
    assert dict(zip(points.y, points.x, strict=True)) == {"outcome": 80, "length": 30}
    assert "step 60" in texts(figure)


def test_a_divergence_of_zero_has_no_shares():
    figure = plot_answer_shift(profile(), PEAK, shares(share=(np.nan, np.nan)))
    assert "there are no<br>shares of it" in texts(figure)


def test_names_of_properties_cannot_pass_for_markup():
    figure = plot_answer_shift(profile(), PEAK, shares(("<b onclick=alert(1)>", "length")))
    assert "<b onclick" not in figure.to_json().replace("\\u003c", "<").replace("\\u003e", ">")
