from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def recipes_beside_each_other(monkeypatch):
    """Lets recipes import the module that they share, as they do when Python runs them as scripts."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "recipes"))
