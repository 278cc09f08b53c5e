"""A run asked through a real vLLM, whose environment VLLM_PYTHON names: run with -m vllm."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.vllm
@pytest.mark.timeout(3600)
def test_a_real_server_gives_the_same_greedy_answers_likelihoods_and_curve(tmp_path):
    out = tmp_path / "result.json"
    options = ["--steps", "5", "--samples", "2", "--folder", tmp_path / "work", "--out", out]
    command = [sys.executable, ROOT / "benchmarks" / "vllm.py", "--python", os.environ["VLLM_PYTHON"], *options]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    found = json.loads(out.read_text())
    assert found["greedy"]["tokens_differ"] < 0.05
    assert found["preference"]["largest_difference"] < 1e-3
    assert found["killed"]["kept"] and found["killed"]["twice"] == 0
    assert found["killed"]["answers"] == found["sampled"]["answers"]
    for row in found["curve"]:
        (_, low, high), (_, other_low, other_high) = row["em_here"], row["em_vllm"]
        assert low <= other_high and other_low <= high, row
