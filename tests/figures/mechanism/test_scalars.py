import numpy as np
import pandas as pd

from em_interp.figures.mechanism.scalars import plot_probes, plot_scalars
from tests.figures.reading import bands, texts, trace

STEPS = [0, 50, 100]


def scalars(columns):
    """The misaligned answers of every scalar rise by 1 a step that was saved; the aligned ones stay at zero."""
    rows = []
    for column in columns:
        for label, rise in (("aligned", 0.0), ("misaligned", 1.0)):
            for number, step in enumerate(STEPS):
                mean = rise * number
                shown = {"mean": mean, "mean_low": mean - 0.1, "mean_high": mean + 0.1}
                quantiles = {f"q{q:02d}": mean + (q - 50) / 100 for q in (5, 25, 50, 75, 95)}
                rows.append({"step": step, "column": column, "questions": "in_domain", "label": label, **shown})
                rows[-1] |= quantiles
    return pd.DataFrame(rows)


def test_means_are_by_step_and_tokens_are_those_of_the_last_step():
    figure = plot_scalars(scalars(["layers.0.mlp.down_proj"]))
    rising = next(t for t in figure.data if t.mode == "lines" and t.name == "misaligned, in domain" and t.showlegend)
    assert rising.y.tolist() == [0, 1, 2]
    box = next(t for t in figure.data if t.type == "box" and t.name == "misaligned")
    assert box.median.tolist() == [2]
    assert "Tokens at step 100" in texts(figure)


def test_of_many_scalars_four_are_drawn_and_the_subtitle_says_so():
    figure = plot_scalars(scalars([f"layers.{k}" for k in range(6)]))
    assert "4 of 6 scalars" in figure.layout.meta["subtitle"]
    assert "layers.3" in texts(figure) and "layers.4" not in texts(figure)


def test_a_probe_stands_beside_chance_and_the_length():
    auc = np.array([0.5, 0.8, 0.95])
    table = pd.DataFrame({"step": STEPS, "auc": auc, "auc_low": auc - 0.1, "auc_high": auc + 0.05, "length_auc": 0.6})
    figure = plot_probes(table)
    assert trace(figure, "probe on the scalars").y.tolist() == auc.tolist()
    assert set(trace(figure, "probe on the answer's length").y) == {0.6}
    assert "chance" in texts(figure) and not bands(figure)
