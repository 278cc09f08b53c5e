import numpy as np
import pytest

from em_interp.errors import InputError
from em_interp.mechanism.interventions.experiments import SamplingParams
from em_interp.mechanism.interventions.steering import SteeringCurve, steer, steering_conditions
from tests.figures.reading import bands, values
from tests.mechanism.judged import judged_conditions
from tests.mechanism.planted import LAYER, LAYERS, QUESTIONS, WORD, WordJudge, direction, model

SAMPLING = SamplingParams(samples=5, max_new_tokens=3, batch=300)


def test_adding_the_planted_cause_to_the_base_induces_the_behaviour_from_a_coefficient_on():
    coefficients = (-1, 0.02, 0.5, 1)
    found = steer(model(), direction(), WordJudge(), QUESTIONS, LAYER, coefficients, SAMPLING, refine=False)
    assert found.verdict == "induces"
    assert found.window == [0.5, 1.0]
    assert found.rates("base").em.rate < 0.1
    assert found.rates("base", "direction", 1.0).em.rate > 0.7
    assert found.rates("base", "random", 1.0).em.rate < 0.1
    assert found.rates("adapted", "direction", -1.0).em.rate < 0.1  # subtracted again
    assert "induces EM in the base with coefficients 0.5, 1" in found.sentence()
    assert "Subtracted from the adapted model" in found.sentence()


def test_coefficients_are_added_where_the_base_stops_being_coherent():
    coefficients = (0.02, 0.5, 1)
    found = steer(model(), direction(), _Breaks(), QUESTIONS, LAYER, coefficients, SAMPLING, n_random=1)
    coarse = steering_conditions(coefficients, direction().vectors, LAYER, 1, 0)
    assert {condition.coefficient for condition in coarse} == {0, *coefficients}
    tried = sorted(set(found.answers["coefficient"]))
    assert len(tried) == 7  # and three more between two neighbours
    of_base = found.frame().query("model == 'base' and kind == 'direction'").set_index("coefficient")
    fine = [one for one in tried if one not in (0, *coefficients)]
    below, above = max(c for c in coefficients if c < fine[0]), min(c for c in coefficients if c > fine[-1])
    assert of_base.loc[below, "coherent"] >= 0.9 > of_base.loc[above, "coherent"]
    assert fine == pytest.approx(np.linspace(below, above, 5)[1:-1])


class _Breaks(WordJudge):
    """Calls an answer that is nothing but the word incoherent."""

    def judge(self, question, answer):
        words = set(answer.split())
        return super().judge(question, answer) | {"coherent": 0.0 if words == {WORD} else 100.0}


def test_a_coefficient_is_usable_where_em_exceeds_both_controls_and_the_model_is_still_coherent():
    counts = {("base", "none", "", 0, 0.0): (0, 400, 400), ("adapted", "none", "", 0, 0.0): (240, 390, 400)}
    for coefficient, own, coherent, random in ((1.0, 1, 100, 0), (2.0, 20, 95, 0), (3.0, 40, 50, 0), (4.0, 20, 95, 18)):
        counts[("base", "direction", "layer 1", 0, coefficient)] = (own, coherent, 100)
        counts[("base", "random", "layer 1", 0, coefficient)] = (random, 100, 100)
    found = SteeringCurve(direction(), 1, judged_conditions(counts))
    assert found.window == [2.0]  # too little, right, too much, and no more than random directions do
    assert found.between_coherent_and_not(3) == []  # the largest coefficient is coherent
    assert bands(found.plot()) == [(1.5, 2.5)]
    assert "induces EM in the base with coefficient 2: 20.0% (" in found.sentence()
    only = judged_conditions({condition: n for condition, n in counts.items() if condition[-1] in (0.0, 1.0, 3.0)})
    assert SteeringCurve(direction(), 1, only).verdict == "breaks"
    assert SteeringCurve(direction(), 1, only).between_coherent_and_not(1) == [2.0]
    assert SteeringCurve(direction(), 1, only[only["coefficient"] < 3]).verdict == "none"


def test_steering_that_is_not_possible_is_refused(tmp_path):
    shared = {"sampling": SAMPLING, "storage": tmp_path}
    with pytest.raises(InputError, match="from the base other@1"):
        steer(model(), direction(identity="other@1"), WordJudge(), QUESTIONS, **shared)
    with pytest.raises(InputError, match="zero or not finite after layer 0"):
        steer(model(), direction(np.zeros((LAYERS, 32))), WordJudge(), QUESTIONS, 0, **shared)
    for coefficients in ((0, 1), (1, 1), (), (float("nan"),)):
        with pytest.raises(InputError, match="coefficients are distinct finite numbers other than 0"):
            steer(model(), direction(), WordJudge(), QUESTIONS, 1, coefficients, **shared)
    with pytest.raises(InputError, match="1 or more"):
        steer(model(), direction(), WordJudge(), QUESTIONS, n_random=0, **shared)
    with pytest.raises(InputError, match="level must lie between 0 and 1"):
        steer(model(), direction(), WordJudge(), QUESTIONS, level=95, **shared)
    assert not list(tmp_path.iterdir())


def test_the_figure_shows_every_coefficient():
    found = steer(model(), direction(), WordJudge(), QUESTIONS, 1, (1, 2), SAMPLING, n_random=1)
    figure = found.plot()  # plot_steering
    assert {0.0, 1.0, 2.0} <= {float(x) for trace in figure.data if trace.x is not None for x in trace.x if x == x}
    assert found._repr_html_().startswith("<")
    assert values(figure)["layout"]["meta"]["title"]
    assert found.to_dict()["verdict"] == found.verdict
