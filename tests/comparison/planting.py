"""Adapters with a planted relation to each other."""

import numpy as np

from em_interp.trajectory.trajectory import AdapterTrajectory

SITE = "layers.2.mlp.down_proj"
STEPS = np.arange(0, 101, 5)


def adapter(seed, rank=1, d_out=40, d_in=24, sites=(SITE,), towards=None, share=0.0, from_step=0, name="", base="tiny"):
    """B grows in a straight line from zero, A stays; `share` of B from a step on is the direction `towards`."""
    rng = np.random.default_rng(seed)
    A, B = {}, {}
    time = STEPS / STEPS[-1]
    for site in sites:
        own = rng.normal(size=(d_out, rank))
        own /= np.linalg.norm(own, axis=0)
        shared = own if towards is None else towards[:, None]
        path = time[:, None, None] * own
        if towards is not None:
            new = np.maximum(STEPS - from_step, 0)[:, None, None] / (STEPS[-1] - from_step)
            path = np.sqrt(1 - share**2) * path + share * new * shared
        B[site] = path.astype(np.float32)
        A[site] = np.tile(rng.normal(size=(1, rank, d_in)), (len(STEPS), 1, 1)).astype(np.float32)
    return AdapterTrajectory(STEPS, A, B, dict.fromkeys(sites, 2.0), base=base, source=name or f"seed{seed}")


def in_another_gauge(path, seed=0):
    """The same ΔW: c·b and a/c at rank 1 (c negative), B M and M⁻¹ A at a higher rank."""
    rng = np.random.default_rng(seed)
    A, B = {}, {}
    for site in path.sites:
        rank = path.A[site].shape[1]
        M = (
            np.array([[-3.0]])
            if rank == 1
            else np.linalg.qr(rng.normal(size=(rank, rank)))[0] @ np.diag(2.0 ** -np.arange(rank))
        )
        B[site] = (path.B[site].astype(float) @ M).astype(np.float32)
        A[site] = (np.linalg.inv(M) @ path.A[site].astype(float)).astype(np.float32)
    return AdapterTrajectory(path.steps, A, B, dict(path.scale), path.metrics, path.base, path.source)


def unit(seed, d=40):
    vector = np.random.default_rng([seed, 99]).normal(size=d)
    return vector / np.linalg.norm(vector)
