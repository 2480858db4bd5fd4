"""Importing the package is quick and quiet: what is heavy loads when first used."""

import subprocess
import sys

import pytest

import cflow

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


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_rooms_that_load_late_are_there_all_the_same():
    loaded = "[name for name in ('cflow.density', 'cflow.testing') if name in sys.modules]"
    names = "cflow.density.FlowDensity.__name__, cflow.testing.check_flow.__name__"
    assert run(f"import sys, cflow; print({loaded}, {names}, len({loaded}))") == "[] FlowDensity check_flow 2"
    assert run("import cflow; print({'density', 'testing'} <= set(dir(cflow)))") == "True"
    assert run("from cflow import *; print(density.__name__, testing.__name__)") == "cflow.density cflow.testing"


def test_a_room_that_there_is_not_is_no_attribute():
    with pytest.raises(AttributeError, match="no attribute 'attic'"):
        cflow.attic  # noqa: B018
