"""Guides name only what there is, and their notebooks are made from them."""

import importlib
import importlib.util
import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "recipes" / "guide"
GUIDES = sorted(FOLDER.glob("*.md"))
PARTS = (
    "bases", "bijections", "couplings", "ctmc", "data", "density", "discrete", "divergence", "fields", "guidance",
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
        if attributes[0] not in ("json", "png"):  # metrics.json and training.png are files
            find(part, attributes)


def test_a_wrong_name_is_found():
    (only,) = named("see `metrics.no_such_distance(x)` and recipes/density.md")
    with pytest.raises(ImportError):
        find(*only)


def sections(text):
    """Returns the sections of a page, outside of code."""
    return re.findall(r"^## (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)


@guides
def test_a_line_of_links_lists_every_section(page):
    """Whether the links lead somewhere is tested for all pages together."""
    text = page.read_text()
    line = re.search(r"^\*\*On this page:\*\* (.+?)\n\n", text, re.DOTALL | re.MULTILINE)
    assert line or len(text.splitlines()) <= 200
    if line:
        assert re.findall(r"\[([^\]]+)\]\(#", line[1]) == [each.replace("`", "") for each in sections(text)]


def test_the_terms_of_the_glossary_are_sorted():
    tables = re.split(r"^## .+$", (FOLDER / "glossary.md").read_text(), flags=re.MULTILINE)[1:]
    assert len(tables) == 7
    for table in tables:
        terms = [row.split("|")[1].strip(" `").lower() for row in re.findall(r"^\|.*$", table, re.MULTILINE)[2:]]
        assert terms == sorted(set(terms))


spec = importlib.util.spec_from_file_location("notebooks", FOLDER / "notebooks.py")
notebooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(notebooks)
of_a_notebook = pytest.mark.parametrize("name", notebooks.PAGES)


@of_a_notebook
def test_a_notebook_is_its_page(name):
    file = FOLDER / f"{name}.ipynb"
    book = json.loads(file.read_text(encoding="utf-8"))
    kept = [(cell["cell_type"], "".join(cell["source"])) for cell in book["cells"]]
    page = notebooks.cells((FOLDER / f"{name}.md").read_text(encoding="utf-8"), name)
    assert kept == page, "the page has changed: run python recipes/guide/notebooks.py"


@of_a_notebook
def test_a_notebook_is_small_and_shows_what_it_made(name):
    file = FOLDER / f"{name}.ipynb"
    assert file.stat().st_size < notebooks.MOST
    book = json.loads(file.read_text(encoding="utf-8"))
    outputs = [output for cell in book["cells"] for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", ()) for output in outputs)
    drawn = [cell for cell in book["cells"] if "".join(cell["source"]).split("\n")[-1].startswith("plot.")]
    assert all("image/png" in cell["outputs"][-1]["data"] for cell in drawn if cell["cell_type"] == "code")
    assert "/tmp/" not in file.read_text()


def test_a_page_is_cut_into_cells():
    code = "```python\nx = 1\nplot.corner(\n    x\n)  # seen\n\ny = 2\n```\n"
    page = f"# Title\n\nText.\n\n{code}\n```sh\nls\n```\nEnd.\n"
    first, *others = notebooks.cells(page, "name")
    assert first[0] == "markdown"
    assert first[1].startswith("# Title\n\n*Made from [name.md](name.md)")
    assert first[1].endswith("\n\nText.")
    picture = ("code", "x = 1\nplot.corner(\n    x\n)  # seen")
    assert others == [picture, ("code", "y = 2"), ("markdown", "```sh\nls\n```\nEnd.")]


def test_outputs_are_kept_without_progress_bars_and_places():
    text = "  0%|  | 0/9\r100%|##| 9/9 [00:01<00:00, 8.9it/s]\n/tmp/ipykernel_7/1.py:3: UserWarning: a few rows\n"
    assert notebooks.readable(text) == "UserWarning: a few rows\n"


def test_outputs_are_kept_while_the_code_is_the_same():
    nbformat = pytest.importorskip("nbformat")
    page = "# Title\n\nText.\n\n```python\nx = 1\nx\n```\n"
    before = notebooks.notebook(page, "name")
    before.cells[1].outputs = [nbformat.v4.new_output("execute_result", {"text/plain": "1"}, execution_count=3)]
    before.cells[1].execution_count = 3
    same, other = (
        notebooks.notebook(page.replace(*change), "name") for change in (("Text", "Words"), ("x = 1", "x = 2"))
    )
    assert notebooks.reuse(same, before)
    assert same.cells[1].outputs[0].data == {"text/plain": "1"}
    assert "Words" in same.cells[0].source
    assert not notebooks.reuse(other, before)
    assert other.cells[1].outputs == []


@pytest.mark.slow
@of_a_notebook
def test_a_notebook_runs(name):
    pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    notebooks.run(book)
    assert all(cell.execution_count for cell in book.cells if cell.cell_type == "code")
