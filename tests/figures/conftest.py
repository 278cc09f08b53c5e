import pytest

from em_interp.reports.findings import find_in_run
from tests.figures.planting import plant_run


@pytest.fixture(scope="session")
def control(tmp_path_factory):
    """Findings of a run in which nothing changes."""
    return find_in_run(plant_run(tmp_path_factory.mktemp("control") / "control", changes=False))


@pytest.fixture(scope="session")
def organism(tmp_path_factory, control):
    """Findings of a run in which B turns at TURN and EM rises half-way at ONSET."""
    return find_in_run(plant_run(tmp_path_factory.mktemp("organism") / "organism"), control.run)


@pytest.fixture(scope="session")
def bare(tmp_path_factory):
    """Findings of a path alone: no log, no answers."""
    return find_in_run(plant_run(tmp_path_factory.mktemp("bare") / "bare", log=False, asked=False))
