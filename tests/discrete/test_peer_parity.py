"""Weights of other libraries in our layers; where these are installed, in a process of its own (zuko changes torch)."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

HERE = all(importlib.util.find_spec(name) for name in ("zuko", "nflows"))


@pytest.mark.skipif(not HERE, reason="zuko and nflows are not installed")
def test_flows_of_zuko_and_nflows_have_the_same_density_with_their_weights():
    script = Path(__file__).parents[1] / "benchmarks" / "discrete_parity.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("relative difference") == 5
