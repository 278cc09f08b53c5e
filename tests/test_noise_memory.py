"""A seeded part of benchmarks/noise_memory.py: slower noise passes for a turn, and what other momenta would change."""

import sys

import em_interp as em
from em_interp.transition.direction import path_noise
from em_interp.transition.synthetic.paths import planted_path
from tests.tiny import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import noise_memory


def test_noise_of_momentum_is_no_turn_and_slower_noise_is_taken_for_one():
    assert sum(noise_memory.planted(0.9, 1.0, 5)) == 0
    assert sum(noise_memory.planted(0.98, 1.0, 5)) >= 3


def test_a_run_is_located_with_each_momentum_and_as_always_with_that_of_the_tool():
    path = planted_path("abrupt", 500).trajectory()
    found = noise_memory.of_run(path)
    assert noise_memory.words(found["B", 0.9]) == noise_memory.words(em.find_transition(path, of="B"))
    assert found["B", 0.98].found and path_noise.MOMENTUM == 0.9
