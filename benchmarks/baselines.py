"""What others would use to find a turn of a path: ruptures, E-divisive, and the published heuristic.

All three get the saved positions. ruptures and E-divisive look for a change of the mean of the directions of successive
displacements over 10 steps, in which momentum is down to a third and the speed of the path plays no part.

- ruptures (arXiv 1801.00826): `KernelCPD` with the linear kernel, the exact minimum of the squared error; penalty
  tr Σ · log n, which is BIC with the noise's total variance estimated from successive differences.
- E-divisive (Matteson and James, arXiv 1306.4933): the largest energy distance between what is before a step and after
  it, tested with 199 permutations at 0.05. It assumes independent displacements.
- The heuristic (arXiv 2506.11613): the step with the largest local cosine, here at k = 10, 15 and 20.
"""

import numpy as np
import ruptures

from em_interp.transition.direction.local_cosine import largest_local_cosine

LAG = 10  # steps of a displacement
SPACINGS = (10, 15, 20)
N_PERMUTATIONS, ALPHA, MIN_SIDE = 199, 0.05, 3


def named_steps(path):
    """The step that each baseline names on a planted path; None where it finds no turn."""
    directions, edges = displacements(path)
    steps = {"ruptures": with_ruptures(directions, edges), "e_divisive": with_e_divisive(directions, edges)}
    return steps | {f"k = {k}": largest_local_cosine(path.gram, path.steps, k)[0] for k in SPACINGS}


def displacements(path):
    """Directions of successive displacements over LAG steps or more, and the steps between which they lie."""
    rows = [0]
    for row, step in enumerate(path.steps):
        if step - path.steps[rows[-1]] >= LAG:
            rows.append(row)
    moves = np.diff(path.vectors[rows].astype(float), axis=0)
    length = np.linalg.norm(moves, axis=1, keepdims=True)
    return moves / np.maximum(length, np.finfo(float).tiny), path.steps[rows]


def with_ruptures(directions, edges):
    n = len(directions)
    variance = np.mean(np.sum(np.diff(directions, axis=0) ** 2, axis=1)) / 2
    search = ruptures.KernelCPD(kernel="linear", min_size=MIN_SIDE).fit(directions)
    if len(search.predict(pen=max(variance, 1e-12) * np.log(n))) == 1:  # the end alone
        return None
    return float(edges[search.predict(n_bkps=1)[0]])


def with_e_divisive(directions, edges, seed=0):
    distances = np.sqrt(np.maximum(2 - 2 * directions @ directions.T, 0))
    statistic, split = energy_split(distances)
    rng = np.random.default_rng(seed)
    as_large = 0
    for _ in range(N_PERMUTATIONS):
        order = rng.permutation(len(distances))
        as_large += energy_split(distances[np.ix_(order, order)])[0] >= statistic
    return float(edges[split]) if (1 + as_large) / (1 + N_PERMUTATIONS) <= ALPHA else None


def energy_split(distances):
    """The largest scaled energy distance between the first m points and the rest, and m."""
    n = len(distances)
    sums = np.zeros((n + 1, n + 1))
    sums[1:, 1:] = distances.cumsum(0).cumsum(1)
    m = np.arange(MIN_SIDE, n - MIN_SIDE + 1)
    first, both = sums[m, m], sums[m, n]
    last = sums[n, n] - 2 * both + first
    rest = n - m
    between = (both - first) / (m * rest)
    statistic = m * rest / n * (2 * between - first / (m * (m - 1)) - last / (rest * (rest - 1)))
    best = int(np.argmax(statistic))
    return float(statistic[best]), int(m[best])
