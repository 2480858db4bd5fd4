"""Guides name only what there is."""

import importlib
import re
from pathlib import Path

import pytest

GUIDES = sorted((Path(__file__).parents[1] / "recipes" / "guide").glob("*.md"))
PARTS = (
    "bases", "bijections", "couplings", "data", "density", "discrete", "divergence", "fields", "guidance",
    "integrations", "metrics", "objectives", "paths", "plot", "solvers", "times", "training",
)  # fmt: skip
guides = pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)


def named(text):
    """Yields what text in backticks names: ``(part of cflow, attributes below it)``, such as ``metrics.pit``."""
    outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for code in re.findall(r"`([^`\n]+)`", outside):
        for part, rest in re.findall(rf"(?<![\w./-])({'|'.join(PARTS)})((?:\.[A-Za-z_]\w*)+)", code):
            yield part, rest[1:].split(".")


def find(part, attributes):
    found = importlib.import_module(f"cflow.{part}")
    for name in attributes:
        if not hasattr(found, name):  # modules that are imported when they are first used
            return importlib.import_module(".".join(["cflow", part, *attributes]))
        found = getattr(found, name)
    return found


@guides
def test_what_a_guide_names_is_there(page):
    for part, attributes in named(page.read_text()):
        if attributes != ["json"]:  # metrics.json is a file
            find(part, attributes)


def test_a_wrong_name_is_found():
    (only,) = named("see `metrics.no_such_distance(x)` and recipes/density.md")
    with pytest.raises(ImportError):
        find(*only)
