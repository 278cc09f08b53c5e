"""The tables of a comparison, and those that do not exist."""

import numpy as np
import pytest

import em_interp as em
from em_interp.comparison.result import TABLES
from em_interp.errors import InputError
from tests.comparison.planting import adapter


def compare(*paths):
    return em.compare(paths, permutations=49)


@pytest.mark.parametrize("table", TABLES)
def test_every_table_is_tidy_and_can_be_had(table):
    rows = compare(adapter(1, 2), adapter(2, 2)).frame(table)
    assert len(rows) and not rows.duplicated().any()


def test_a_table_or_measure_that_does_not_exist_is_refused_with_those_that_do():
    found = compare(adapter(1, 2), adapter(2, 2))
    with pytest.raises(InputError, match="table 'pears' is not known; did you mean 'pairs'"):
        found.frame("pears")
    with pytest.raises(InputError, match="no measure 'C' at site"):
        found.matrix("C")
    with pytest.raises(InputError, match="drawn at rank 1 only"):
        found.plot("plane", "B")
    with pytest.raises(InputError, match="no agreement on 'onset'"):
        found.plot("agreement", signal="onset")
    assert np.diag(found.matrix("B")).tolist() == [1, 1]
