import pandas as pd

from em_interp.figures.mechanism.kl_from_base import plot_kl_from_base
from tests.figures.reading import trace, values

STEPS = [0, 50, 100]


def rates(questions, kl):
    ends = {"kl_low": [0.9 * x for x in kl], "kl_high": [1.1 * x for x in kl]}
    return pd.DataFrame({"step": STEPS, "questions": questions, "kl": kl, **ends, "tokens": 640})


def test_each_question_set_has_its_line_and_the_axis_says_what_is_divided_by_what():
    figure = plot_kl_from_base(pd.concat([rates("in_domain", [0, 0.2, 0.5]), rates("broad", [0, 0.1, 0.1])]))
    assert trace(figure, "in domain").y.tolist() == [0, 0.2, 0.5]
    assert trace(figure, "broad").y.tolist() == [0, 0.1, 0.1]
    assert "640 in domain" in figure.layout.meta["subtitle"]
    assert "nats a token" in values(figure)["layout"]["yaxis"]["title"]["text"]
