"""Pages keep what they promise: their code runs, their commands are understood, their links and pictures are there."""

import functools
import importlib.util
import linecache
import math
import re
import shlex
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch
import tyro

import cflow
from cflow.cli import COMMANDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
GUIDES = sorted((ROOT / "recipes" / "guide").glob("*.md"))
PAGES = [
    ROOT / "README.md",
    ROOT / ".github" / "CONTRIBUTING.md",
    ROOT / "tests" / "benchmarks" / "README.md",
    *sorted((ROOT / "recipes").glob("*.md")),
    *GUIDES,
]
named = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def run(page, folder, monkeypatch):
    """Runs the code of a page from top to bottom in an empty folder, and returns the names that it leaves."""
    monkeypatch.chdir(folder)
    module = type(sys)("page")  # what a page defines must be found by its name, as pickling in a worker does
    monkeypatch.setitem(sys.modules, "page", module)
    names = vars(module)
    for number, block in enumerate(blocks(page, "python")):
        file = f"{page.name}, block {number + 1}"
        # For tracebacks; and without lines to read, PyTorch 2.11 compiles a function as another one.
        linecache.cache[file] = (len(block), None, block.splitlines(keepends=True), file)
        exec(compile(block, file, "exec"), names)
    return names


@named
def test_the_code_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    assert blocks(page, "python") or page not in GUIDES or page.name in WITHOUT_CODE
    matplotlib.use("agg")
    torch.manual_seed(0)
    names = run(page, tmp_path, monkeypatch)
    plt.close("all")
    if page.name == "README.md" and page.parent == ROOT:
        check_readme(names, tmp_path)
    if page in GUIDES and page.name in CHECKS:
        CHECKS[page.name](names)


WITHOUT_CODE = {"README.md", "choosing.md", "glossary.md", "parts.md"}


def check_readme(names, folder):
    assert names["X"].shape == (442, 10)
    assert (names["high"] > names["low"]).all()
    assert names["threes"].shape == (4, 1, 8, 8)
    assert names["fast"].solver == names["solvers"].Euler(steps=1)
    assert names["y"].shape == (11, 3)
    assert names["solution"].success.all()
    assert (folder / "digits" / "flow.safetensors").is_file()


def check_density(names):
    labels = names["table"].labels
    assert sorted(labels[row] for row in names["worst"]) == ["G0100", "G0900"]
    assert (names["positive"] > 0).all()
    low, high = names["turned"].score_samples([[0, -math.pi], [0, math.pi - 1e-9]])
    assert abs(low - high) < 1e-4
    assert names["comparison"].means["maf"] > names["comparison"].means["normal"]
    assert 0.8 < names["inside"] < 0.98
    rows = names["logged"][:3]
    kept = torch.tensor(names["density"].score_samples(rows))
    assert torch.allclose(cflow.load("galaxy-density").log_prob(torch.tensor(rows)), kept)


def check_simulation(names):
    draws, exact, low, high = (names[name] for name in ("draws", "exact", "low", "high"))
    assert ((draws >= low - 1e-4) & (draws <= high + 1e-4)).all()
    assert ((draws.mean(0) - exact.mean(0)).abs() < exact.std(0)).all()
    assert (draws.std(0) < 3 * exact.std(0)).all()
    assert names["sbc"].ks.min() > 1e-6
    assert abs(names["coverage"].excess) < 0.1


def check_evaluating(names):
    assert abs(names["coarse"] - names["fine"]) < 0.1
    assert names["weights"].effective_sample_size > 3000
    assert names["off"] < 0.3
    assert names["coverage"].excess == pytest.approx(0, abs=0.05)  # the last claim: the prior


def check_between_data(names):
    assert names["new"].shape == (500, 2)
    assert names["distances"]["flow"] < 0.5 * names["distances"]["no motion"]
    assert names["reached"] < 0.5 * names["at_first"]
    assert names["paired_flow"].trained_by[-1].coupling == "couplings.Paired"
    assert names["fan"].shape == (21, 200, 2)
    assert names["fan"][-1].std(0).min() > 0.2  # one row ends in many places
    assert names["on_day_5"].shape == (400, 2)


def check_few_steps(names):
    errors, few = names["errors"], names["distances"]
    assert errors["AdamsBashforth"] < errors["Heun"] < errors["Euler"]
    assert errors["fitted, 4 evaluations"] < errors["Heun"]
    assert all(few[name] < few["first flow, 4"] for name in few if name != "first flow, 4")
    assert names["one"].likelihood == "none"
    assert names["log_density"].isfinite().all()


def check_images(names):
    assert names["x"].shape == (10, 1, 8, 8)
    assert names["rows"].shape == (3, 10, 1, 8, 8)
    assert names["bits"].shape == (4,)


def check_targets(names):
    assert names["found"].pareto_k < 0.7
    assert names["other"].pareto_k < 0.7
    assert names["share"] > 0.5
    assert 10 < names["bayes_factor"] < 15
    assert names["draws"].shape == (100, 3, 2)


def check_coming_from(names):
    assert names["y"].shape == (11, 3)
    assert names["solution"].success.all()
    assert names["samples"].shape == (10, 64, 2)
    assert names["run"].history[-1]["nfe"] > 10


CHECKS = {
    "density.md": check_density,
    "simulation.md": check_simulation,
    "evaluating.md": check_evaluating,
    "between-data.md": check_between_data,
    "few-steps.md": check_few_steps,
    "images.md": check_images,
    "targets.md": check_targets,
    "coming-from.md": check_coming_from,
}


def commands(page):
    """Yields the commands of a page: lines of its shell blocks, and those in single backticks."""
    text = page.read_text()
    lines = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    for line in lines + inline:
        for part in re.split(r"&&|;|\|", line.split("  #")[0]):
            words = part.split(" # ")[0].strip()
            words = re.sub(r"^(\w+=\S+ )*(accelerate launch (--\w+ )*|\S*/bin/)?(?=python|recipes|cflow)", "", words)
            if re.match(r"(python (recipes|tests/benchmarks)/\w+\.py|recipes/\w+\.py|cflow \w)", words):
                yield words.removeprefix("python ")


@named
def test_its_commands_are_understood(page):
    for command in commands(page):
        program, *arguments = shlex.split(command)
        if program == "cflow":
            name, *arguments = arguments
            if not arguments:  # its name in a sentence
                continue
            function = next(getattr(module, name) for module in COMMANDS if hasattr(module, name))
            parse(functools.wraps(function)(lambda *_, **__: None), arguments, command)
        elif program.startswith("tests/"):
            text = (ROOT / program).read_text()
            for option in (each for each in arguments if each.startswith("--")):
                assert f'"{option}"' in text or f"{option[2:].replace('-', '_')}:" in text, command
        else:
            parse(recipe(program).Options, arguments, command)


@functools.cache
def recipe(program):
    spec = importlib.util.spec_from_file_location(Path(program).stem, ROOT / program)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(ROOT / "recipes"))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


def parse(what, arguments, command):
    try:
        tyro.cli(what, args=arguments, console_outputs=False)
    except SystemExit as stop:
        raise AssertionError(f"not understood: {command}") from stop


def test_a_wrong_command_is_found():
    with pytest.raises(AssertionError, match="not understood"):
        parse(recipe("recipes/toys.py").Options, ["--colour", "red"], "toys")


def test_there_are_exactly_two_set_up_commands():
    found = re.findall(r"^pip install .*$", README, re.MULTILINE)
    assert found == ["pip install -e . && python recipes/images.py", 'pip install -e ".[test]" && pytest']


def anchors(page):
    """Returns the anchors that headings of a page have where it is shown."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@named
def test_every_link_and_picture_is_there(page):
    for target in re.findall(r"\]\(([^)]+)\)|src=\"([^\"]+)\"", page.read_text()):
        name, _, anchor = (target[0] or target[1]).partition("#")
        if name.startswith(("http:", "https:")):
            continue
        place = (page.parent / name).resolve() if name else page
        assert place.exists(), name
        assert place.is_dir() or place.stat().st_size > 500, name
        if anchor:
            assert anchor in anchors(place), f"{name}#{anchor}"


def test_pictures_are_small_and_shown():
    text = "".join(page.read_text() for page in PAGES)
    for picture in (ROOT / "assets").rglob("*.png"):
        assert picture.stat().st_size < 300_000, picture
        assert picture.name in text, f"{picture} is shown nowhere"


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 250


def test_every_recipe_has_a_place_in_the_gallery_and_in_the_readme():
    gallery = (ROOT / "recipes" / "README.md").read_text()
    recipes = [each.name for each in (ROOT / "recipes").glob("*.py") if "run_recipe(" in each.read_text()]
    assert len(recipes) >= 7
    for name in recipes:
        assert f"\n## `{name}`" in gallery
        assert f"python recipes/{name}" in README or name == "reflow.py"  # README shows its command, cflow reflow
