"""Paths, curves and logs with a planted truth: what every error rate of the estimators is measured on."""

from __future__ import annotations

from numbers import Integral

import numpy as np

from em_interp.errors import InputError
from em_interp.utils.checks import described


def generator_of(seed: int | np.random.Generator) -> np.random.Generator:
    """A random generator itself, or one with this seed; InputError for what is neither."""
    if isinstance(seed, np.random.Generator):
        return seed
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise InputError(f"seed must be a whole number, 0 or more, or a numpy Generator; it is {described(seed)}")
    return np.random.default_rng(int(seed))
