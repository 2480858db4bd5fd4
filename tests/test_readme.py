"""The README's code runs as it stands, in the order in which it is read."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_code_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 9
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["logp"].shape == (64,)
    assert len(names["bns"].times) == 6
    assert names["solution"].success.all()
    assert names["y"].shape == (11, 3)
    assert names["score"].shape == (1000, 2)
    assert names["run"].history[-1]["nfe"] > 10
    assert (names["high"] > names["low"]).all()
    assert names["one"].solver == names["solvers"].Euler(steps=1)
    assert names["x"].shape == (1000, 2)
    assert names["density"].cost() == (3, 3, 3)
    assert len(names["own"].bijection) == 6
    assert (tmp_path / "moons" / "flow.safetensors").is_file()


def test_there_are_exactly_two_set_up_commands():
    commands = re.findall(r"^pip install .*$", README, re.MULTILINE)
    assert commands == ["pip install -e . && python recipes/images.py", 'pip install -e ".[test]" && pytest']


def test_every_picture_and_page_is_there():
    for page in (ROOT / "README.md", ROOT / "tests" / "benchmarks" / "README.md"):
        names = re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text())
        assert names
        for name in names:
            assert (page.parent / name).stat().st_size > 1000, name


def test_the_readme_is_short():
    assert len(README.splitlines()) < 250
