"""Importing the package is quick and quiet: what is heavy loads when first used."""

import subprocess
import sys

HEAVY = (
    "ot",
    "geoopt",
    "torch_geometric",
    "matplotlib",
    "sklearn",
    "accelerate",
    "tensorboard",
    "scipy",
    "torchdiffeq",
)


def test_nothing_heavy_is_imported_and_nothing_is_said():
    code = f"import sys, cflow; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""
