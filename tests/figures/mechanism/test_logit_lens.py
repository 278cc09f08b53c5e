from html import escape

import numpy as np
import pandas as pd

from em_interp.figures.mechanism.logit_lens import plot_logit_lens
from tests.figures.reading import trace, values

STEPS = np.array([0, 50, 100])


def drawn_lens(followed):
    settling = [
        {"step": step, "side": side, "jaccard": step / 100, "null": null}
        for side, null in (("promoted", 0.1), ("suppressed", 0.2))
        for step in STEPS.tolist()
    ]
    return plot_logit_lens(followed, pd.DataFrame(settling), STEPS, "layers.0.mlp.down_proj")


def test_tokens_are_in_the_order_of_their_effect_at_the_last_step():
    figure = drawn_lens({" no": np.array([0, -1, -2.0]), " yes": np.array([0, 1, 2.0]), "\n": np.array([0, 0, 0.5])})
    assert [t.name for t in figure.data] == ["yes", escape(repr("\n")), "no", "promoted", "suppressed"]
    assert trace(figure, "yes").y.tolist() == [0, 1, 2]


def test_settling_has_the_null_of_each_side_and_the_level_at_which_tokens_count_as_settled():
    figure = drawn_lens({" yes": np.array([0, 1, 2.0])})
    assert trace(figure, "promoted").y.tolist() == [0, 0.5, 1]
    heights = [shape.y0 for shape in figure.layout.shapes]
    assert heights == [0, 0.1, 0.2, 0.8]
    layout = values(figure)["layout"]
    assert layout["legend2"]["y"] == layout["yaxis2"]["domain"][1]
