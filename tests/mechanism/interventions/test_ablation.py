import numpy as np
import pytest

from em_interp.errors import InputError
from em_interp.mechanism.interventions.ablation import ALL_LAYERS, MAX_LAYERS, Ablation, ablate
from em_interp.mechanism.interventions.experiments import SamplingParams
from em_interp.trajectory.geometry import evenly_spaced
from tests.figures.reading import drawn, values
from tests.mechanism.judged import judged_conditions
from tests.mechanism.planted import LAYER, LAYERS, QUESTIONS, WordJudge, cause, direction, model

SAMPLING = SamplingParams(samples=40, max_new_tokens=3)


def test_ablating_the_planted_cause_removes_the_behaviour_and_random_directions_do_not():
    found = ablate(model(), direction(), WordJudge(), QUESTIONS, [LAYER], SAMPLING, n_random=3)
    assert found.baseline.rate > 0.7
    assert found.layers == [f"layer {LAYER}", ALL_LAYERS]
    own = found.row("direction", f"layer {LAYER}")
    assert own["removed"] > 0.9 and own["removed_low"] > 0.75
    assert abs(found.row("random", f"layer {LAYER}")["removed"]) < 0.2
    assert (found.verdict, found.best_layers()) == ("mediates", f"layer {LAYER}")
    assert "mediates the misalignment" in found.sentence()
    assert found.rates("none").n == 4 * 3 * SAMPLING.samples
    assert (
        found.row("direction")["n"]
        == found.row("random")["n"]
        == found.row("norm_matched")["n"]
        == 3 * 3 * SAMPLING.samples
    )


def test_ablating_another_direction_removes_nothing():
    other = np.random.default_rng(3).normal(size=(LAYERS, len(cause())))
    other -= np.outer(other @ cause(), cause()) / (cause() @ cause())
    found = ablate(model(), direction(other), WordJudge(), QUESTIONS, [LAYER], SAMPLING, n_random=3)
    assert found.verdict == "none"
    assert "does not mediate" in found.sentence()


def of_layers(layers, direction_em, random_em, norm_matched_em, coherent=100):
    return {
        ("adapted", "direction", layers, 0, 1.0): (direction_em, coherent, 100),
        ("adapted", "random", layers, 0, 1.0): (random_em, 100, 100),
        ("adapted", "norm_matched", layers, 0, 1.0): (norm_matched_em, 100, 100),
    }


@pytest.mark.parametrize(
    ("baseline", "own", "random", "norm_matched", "coherent", "verdict"),
    [
        (240, 5, 58, 50, 100, "mediates"),
        (240, 5, 58, 50, 80, "partly"),  # removed by breaking the model
        (240, 5, 30, 50, 100, "partly"),  # random directions remove half
        (240, 25, 58, 55, 100, "partly"),
        (240, 5, 58, 6, 100, "none"),  # the norm-matched control removes as much
        (240, 60, 58, 60, 100, "none"),
        (0, 0, 0, 0, 100, "undefined"),
    ],
)
def test_the_verdict_of_an_ablation_by_hand(baseline, own, random, norm_matched, coherent, verdict):
    counts = {("adapted", "none", "", 0, 0.0): (baseline, 400, 400)}
    counts |= of_layers(ALL_LAYERS, own, random, norm_matched, coherent)
    found = Ablation(direction(), judged_conditions(counts))
    assert found.verdict == verdict
    assert found.sentence()
    if baseline:
        row = found.row("direction")
        assert row["removed"] == pytest.approx(1 - (own / 100) / (baseline / 400))
        assert row["removed_low"] < row["removed"] < row["removed_high"]
        assert drawn(found.plot())
    assert values(found.plot())


def test_an_ablation_that_is_not_possible_is_refused(tmp_path):
    with pytest.raises(InputError, match="from the base other@1; the model's is tiny@0"):
        ablate(model(), direction(identity="other@1"), WordJudge(), QUESTIONS, sampling=SAMPLING, storage=tmp_path)
    with pytest.raises(InputError, match="no layer 7; the model has 0 to 2"):
        ablate(model(), direction(), WordJudge(), QUESTIONS, [7], SAMPLING, storage=tmp_path)
    with pytest.raises(InputError, match="1 or more"):
        ablate(model(), direction(), WordJudge(), QUESTIONS, sampling=SAMPLING, n_random=0, storage=tmp_path)
    with pytest.raises(InputError, match="level must lie between 0 and 1"):
        ablate(model(), direction(), WordJudge(), QUESTIONS, sampling=SAMPLING, level=95, storage=tmp_path)
    with pytest.raises(
        InputError,
        match="no condition 'random' after 'layer 9'; kinds: none, direction, random, norm_matched; layers: layer 1",
    ):
        counts = {
            ("adapted", "none", "", 0, 0.0): (3, 9, 9),
            **of_layers("layer 1", 1, 2, 3),
            **of_layers(ALL_LAYERS, 1, 2, 3),
        }
        Ablation(direction(), judged_conditions(counts)).row("random", "layer 9")
    assert not list(tmp_path.iterdir())


def test_the_layers_of_a_large_model_are_evenly_spaced():
    assert evenly_spaced(np.arange(4), MAX_LAYERS).tolist() == [0, 1, 2, 3]
    assert evenly_spaced(np.arange(48), MAX_LAYERS).tolist() == [0, 9, 19, 28, 38, 47]


def test_the_figure_shows_every_choice_of_layers():
    found = ablate(model(), direction(), WordJudge(), QUESTIONS, None, SAMPLING, n_random=1)
    figure = found.plot()  # plot_ablation
    assert list(figure.layout.xaxis2.ticktext) == ["0", "1", "2", "every layer"]
    assert found._repr_html_().startswith("<")
    assert values(figure)["layout"]["meta"]["title"]
    assert found.to_dict()["verdict"] == found.verdict
