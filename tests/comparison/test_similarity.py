"""Angles and overlaps of column spaces at the edges: nearly equal, zero, and of less than full rank."""

import numpy as np
import pytest

from em_interp.comparison.similarity import Snapshots, StepSimilarity, principal_angles
from tests.comparison.planting import SITE, adapter, unit


def test_nearly_equal_spaces_have_small_angles_and_not_the_root_of_rounding():
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(30, 2)))[0]
    tilted = basis @ np.array([[3.0, 1.0], [0.0, 2.0]])
    tilted[:, 0] += 1e-9 * unit(1, 30)
    assert principal_angles(basis, tilted).max() < 1e-7
    assert len(principal_angles(basis, np.zeros((30, 2)))) == 0


def test_a_matrix_of_less_than_full_rank_counts_its_rank():
    path = adapter(1, 2)
    path.B[SITE][:, :, 1] = 2 * path.B[SITE][:, :, 0]
    row = np.array([-1])
    found = StepSimilarity.between(Snapshots.of(path, SITE, row), Snapshots.of(path, SITE, row))
    assert found.rank["B"].item() == 1
    assert found.cosines("B").item() == pytest.approx(1)
