"""The tables of a comparison, and those that do not exist."""

from dataclasses import replace

import pytest

import em_interp as em
from em_interp.comparison.pooled import pool_steps
from em_interp.comparison.result import DirectionComparison
from em_interp.errors import InputError
from em_interp.transition.result import Transition
from tests.comparison.planting import adapter


def compare(*paths):
    return em.compare(paths, permutations=49)


@pytest.mark.parametrize("table", DirectionComparison.TABLES)
def test_every_table_is_tidy_and_can_be_had(table):
    rows = compare(adapter(1, 2), adapter(2, 2)).frame(table)
    assert len(rows) and not rows.duplicated().any()


def test_a_table_or_measure_that_does_not_exist_is_refused_with_those_that_do():
    found = compare(adapter(1, 2), adapter(2, 2))
    with pytest.raises(InputError, match="table 'pears' is not known; did you mean 'pairs'"):
        found.frame("pears")
    with pytest.raises(InputError, match="drawn at rank 1 only"):
        found.plot("plane", "B")
    with pytest.raises(InputError, match="no agreement on 'onset'"):
        found.plot("agreement", signal="onset")


def test_the_onsets_of_em_and_of_preference_are_each_drawn_by_name():
    found, onsets = compare(adapter(1), adapter(2)), []
    for metric in ("em", "preference"):
        step = Transition("onset", "transition", "planted", of=metric, step=50, interval=(45, 55), level=0.95)
        onsets.append(pool_steps(found.names, [step, step]))
    both = replace(found, agreements=(*found.agreements, *onsets))
    for name, onset in zip(("em_onset", "preference_onset"), onsets, strict=True):
        assert both.plot("agreement", signal=name) == onset.plot()
    with pytest.raises(InputError, match="there is: rotation, gradient_norm, norm_onset, em_onset, preference_onset"):
        both.plot("agreement", signal="onset")
