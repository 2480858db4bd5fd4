"""Every skeleton of the guide to extending, pasted into a file outside the package, passes its suite."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "recipes" / "guide" / "extending.md"
CONTRIBUTING = ROOT / ".github" / "CONTRIBUTING.md"
SECTIONS = re.findall(r"^## ((?:A|An) \w+)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.S | re.M) if PAGE.is_file() else []
BLOCKS = [(name, code) for name, text in SECTIONS for code in re.findall(r"```python\n(.*?)```", text, re.S)]
KINDS = ["A field", "A solver", "A path", "A bijection", "An objective", "A coupling", "A base", "A manifold"]


def test_there_is_a_skeleton_for_each_kind():
    assert [name for name, _ in BLOCKS] == KINDS


@pytest.mark.parametrize(("name", "code"), BLOCKS, ids=[name for name, _ in BLOCKS])
def test_a_skeleton_passes_its_suite(name, code, tmp_path):
    assert "check_" in code
    file = tmp_path / "mine.py"
    file.write_text(code)
    # Named as tests/test_pages.py names the code of a page: the registry knows a class by its module and name.
    runpy.run_path(str(file), run_name="page")


def test_the_places_it_names_are_there():
    for place in re.findall(r"`((?:cflow|tests)/[\w/.]+)`", CONTRIBUTING.read_text()):
        assert (ROOT / place).exists(), place
