import numpy as np
import pytest

from em_interp.mechanism.interventions.patched_adapters import grid_steps, patched_adapters, row_adapters
from tests.behaviour.conftest import SITES, make_trajectory

STEPS = (0, 5, 10, 20, 40)


def delta(path, adapters, row):
    """ΔW of one row, all sites as one vector, the slow way."""
    parts = [(adapters.B[site][row] @ adapters.A[site][row]).numpy().ravel() for site in path.sites]
    return np.concatenate(parts).astype(np.float64)


def saved(path, step):
    return np.concatenate([(path.scale[s] * b @ a).ravel() for s, (a, b) in path.at(step).items()]).astype(np.float64)


@pytest.mark.parametrize("rank", [1, 3])
def test_each_cell_has_the_direction_of_its_row_and_the_norm_of_its_column(rank):
    path = make_trajectory(SITES, STEPS, rank)
    steps, norms = grid_steps(path, 4)
    assert steps.tolist() == [10, 20, 40]  # of 10, 20, 30 and 40 the nearest that were saved
    cells = patched_adapters("direction_norm", steps, norms)
    adapters = row_adapters(path, cells, "cpu")
    for row, cell in enumerate(cells):
        vector, direction = delta(path, adapters, row), saved(path, cell.row)
        assert np.linalg.norm(vector) == pytest.approx(np.linalg.norm(saved(path, cell.column)), rel=1e-5)
        assert vector @ direction == pytest.approx(np.linalg.norm(vector) * np.linalg.norm(direction), rel=1e-5)


def test_b_of_one_step_is_combined_with_a_of_another():
    path = make_trajectory(SITES, STEPS, rank=2)
    steps, norms = grid_steps(path, 4)
    cells = patched_adapters("A_B", steps, norms)
    adapters = row_adapters(path, cells, "cpu")
    for row, cell in enumerate(cells):
        for site in path.sites:
            expected = path.scale[site] * path.at(cell.column)[site][1] @ path.at(cell.row)[site][0]
            np.testing.assert_allclose((adapters.B[site][row] @ adapters.A[site][row]).numpy(), expected, rtol=1e-5)


def test_directions_and_norms_do_not_depend_on_the_gauge():
    path = make_trajectory(SITES, STEPS)
    steps, norms = grid_steps(path, 4)
    other = make_trajectory(SITES, STEPS)
    for site in path.sites:
        other.A[site][:] *= 4.0
        other.B[site][:] /= 4.0
    other_steps, other_norms = grid_steps(other, 4)
    one = row_adapters(path, patched_adapters("direction_norm", steps, norms), "cpu")
    two = row_adapters(other, patched_adapters("direction_norm", other_steps, other_norms), "cpu")
    for row in range(len(steps) ** 2):
        np.testing.assert_allclose(delta(path, one, row), delta(path, two, row), rtol=1e-4, atol=1e-6)
