"""Every skeleton of the page for contributors, pasted into a file outside the package, passes its suite."""

import re
import runpy
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / ".github" / "CONTRIBUTING.md"
BLOCKS = re.findall(r"^## (.+?)\n.*?```python\n(.*?)```", PAGE.read_text(), re.S | re.M) if PAGE.is_file() else []


def test_there_is_a_skeleton_for_each_kind():
    assert [name for name, _ in BLOCKS] == ["A solver", "A path", "A bijection", "An objective", "A field"]


@pytest.mark.parametrize(("name", "code"), BLOCKS, ids=[name for name, _ in BLOCKS])
def test_a_skeleton_passes_its_suite(name, code, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(code)
    runpy.run_path(str(file))


def test_the_places_it_names_are_there():
    root = PAGE.parent.parent
    for place in re.findall(r"`((?:cflow|tests)/[\w/.]+)`", PAGE.read_text()):
        assert (root / place).exists(), place
