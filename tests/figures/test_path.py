"""Norms and the path in two components: the turn ringed where it was planted, labels clear of the path."""

import numpy as np

import em_interp as em
from em_interp.trajectory.geometry import principal_components
from em_interp.trajectory.trajectory import AdapterTrajectory
from tests.figures.planting import TURN
from tests.figures.reading import trace


def test_the_ring_on_the_path_is_at_the_turn(organism):
    path = organism.trajectory
    figure = em.figures.pca(path, transitions=organism.transitions)
    (ring,) = [t for t in figure.data if t.text is not None and "turn" in t.text[0]]
    corner = principal_components(path.gram("B")).scores[TURN]
    assert np.hypot(ring.x[0] - corner[0], ring.y[0] - corner[1]) < 0.02
    assert figure.layout.yaxis.scaleanchor == "x"  # angles are what they look like


def test_the_norms_drawn_are_those_of_the_vectors(organism):
    figure = em.figures.norms(organism.trajectory)
    B = organism.trajectory.vectors("B")
    np.testing.assert_allclose(trace(figure, "‖B‖").y, np.linalg.norm(B, axis=1), rtol=1e-5)
    A = organism.trajectory.vectors("A")
    scale = next(iter(organism.trajectory.scale.values()))
    wanted = scale * np.linalg.norm(A, axis=1) * np.linalg.norm(B, axis=1)
    np.testing.assert_allclose(trace(figure, "‖ΔW‖").y, wanted, rtol=1e-5, atol=1e-6)


def test_several_sites_are_drawn_together_or_one_by_one(organism):
    one = organism.trajectory
    (site,) = one.sites
    other = site.replace("2", "3")
    both = AdapterTrajectory(
        one.steps,
        {site: one.A[site], other: one.A[site]},
        {site: one.B[site], other: 2 * one.B[site]},
        {site: one.scale[site], other: one.scale[site]},
    )
    together = em.figures.norms(both)
    assert "2 sites together" in together.layout.title.subtitle.text
    np.testing.assert_allclose(trace(together, "‖B‖").y, np.sqrt(5) * trace(em.figures.norms(one), "‖B‖").y)
    alone = em.figures.trajectory(both, site=other)
    np.testing.assert_allclose(trace(alone, "‖B‖").y, 2 * trace(em.figures.norms(one), "‖B‖").y)
    assert other in alone.layout.title.subtitle.text


def test_a_label_on_a_path_is_clear_of_it_and_of_the_frame(organism):
    figure = em.figures.pca(organism.trajectory, transitions=organism.transitions)
    scores = principal_components(organism.trajectory.gram("B")).scores
    size = np.ptp(scores)
    (low, high), labels = figure.layout.xaxis.range, [t for t in figure.data if t.text is not None]
    assert len(labels) == 2
    for label in labels:
        vertical, horizontal = label.textposition.split()
        middle = np.array([label.x[0], label.y[0]])
        middle += size * 0.1 * np.array([("left", "center", "right").index(horizontal) - 1, 0])
        middle += size * 0.05 * np.array([0, ("bottom", "middle", "top").index(vertical) - 1])
        away = np.abs(scores - middle) / size
        assert np.maximum(away[:, 0] / 0.09, away[:, 1] / 0.02).min() > 0.9
        assert low < middle[0] - 0.09 * size and middle[0] + 0.09 * size < high
