"""Makes the notebooks of some guides from their pages, and runs those whose code has changed.

    python recipes/guide/notebooks.py            # after a page was changed
    python recipes/guide/notebooks.py --run      # runs all of them again, about a minute on one core

A page is the only source: its text becomes text cells, and its blocks of Python become code cells, which end after each
picture. Blocks of other languages stay text. Outputs are kept, small. Needs ``pip install -e ".[docs]"``.
"""

import ast
import base64
import io
import re
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
PAGES = ("density", "simulation", "between-data")
MOST = 200_000  # bytes of a notebook with its outputs
COLOURS = 64  # of a picture


def cells(page: str, name: str) -> list[tuple[str, str]]:
    """Cuts a page into cells: ``("markdown", text)`` or ``("code", source)``."""
    found = []
    for k, part in enumerate(re.split(r"^```python\n(.*?)^```\n?", page, flags=re.DOTALL | re.MULTILINE)):
        if k % 2:
            found += [("code", each) for each in after_pictures(part.rstrip("\n"))]
        elif part.strip():
            found.append(("markdown", part.strip("\n")))
    kind, first = found[0]
    title, _, rest = first.partition("\n")
    note = f"*Made from [{name}.md]({name}.md) by `python recipes/guide/notebooks.py`; change the page, not this copy.*"
    return [(kind, f"{title}\n\n{note}\n{rest}"), *found[1:]]


def after_pictures(source: str) -> list[str]:
    """Cuts code after every picture, as a cell shows only what its last line returns."""
    lines, ends = source.split("\n"), []
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Expr) and ast.unparse(statement).startswith("plot."):
            ends.append(statement.end_lineno)
    starts = [0, *(end for end in ends if end < len(lines))]
    return ["\n".join(lines[a:b]).strip("\n") for a, b in zip(starts, [*starts[1:], len(lines)])]


def notebook(page: str, name: str):
    """Returns the notebook of a page, not yet run."""
    from nbformat import v4

    make = {"markdown": v4.new_markdown_cell, "code": v4.new_code_cell}
    parts = [make[kind](source, id=f"cell-{k}") for k, (kind, source) in enumerate(cells(page, name))]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return v4.new_notebook(cells=parts, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


def run(book) -> None:
    """Runs a notebook in an empty folder; an error in a cell is raised."""
    from nbclient import NotebookClient

    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(book, timeout=600, resources={"metadata": {"path": folder}}, record_timing=False).execute()


def keep_small(book) -> None:
    """Keeps of the outputs what a reader looks at: text without progress bars, and pictures of few colours."""
    for cell in book.cells:
        kept = []
        for output in cell.get("outputs", ()):
            output.get("metadata", {}).clear()
            if "text" in output:
                output["text"] = readable(output["text"])
            data = output.get("data", {})
            if "image/png" in data:
                output["data"] = {"image/png": fewer_colours(data["image/png"])}
            elif "text/plain" in data:
                output["data"] = {"text/plain": data["text/plain"]}
            if output.get("text", "kept"):
                kept.append(output)
        if "outputs" in cell:
            cell["outputs"] = kept


def readable(text: str) -> str:
    """Drops progress bars, and the place of this machine at which a warning was raised."""
    lines = [line.rsplit("\r", 1)[-1] for line in text.split("\n")]
    lines = [line for line in lines if not any(each in line for each in ("%|", "it/s", "TqdmWarning", "notebook_tqdm"))]
    return re.sub(r"^\S*/ipykernel_\d+/\d+\.py:\d+: ", "", "\n".join(lines).lstrip("\n"), flags=re.MULTILINE)


def fewer_colours(picture: str) -> str:
    """Packs a picture again with few colours."""
    from PIL import Image

    packed = io.BytesIO()
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    image.quantize(COLOURS).save(packed, "png", optimize=True)
    return base64.b64encode(packed.getvalue()).decode()


def reuse(book, before) -> bool:
    """Takes the outputs of an earlier notebook with the same code, and returns whether it had that."""
    new, old = ([cell for cell in each.cells if cell.cell_type == "code"] for each in (book, before))
    if [cell.source for cell in new] != [cell.source for cell in old]:
        return False
    for cell, known in zip(new, old):
        cell.outputs, cell.execution_count = known.outputs, known.execution_count
    return True


def main(again: bool) -> None:
    import nbformat

    for name in PAGES:
        file = FOLDER / f"{name}.ipynb"
        book = notebook((FOLDER / f"{name}.md").read_text(encoding="utf-8"), name)
        if again or not file.exists() or not reuse(book, nbformat.read(file, as_version=4)):
            run(book)
            keep_small(book)
        nbformat.write(book, file)
        size = file.stat().st_size
        print(f"{file}: {size / 1000:.0f} kB")
        if size > MOST:
            raise SystemExit(f"{file} is larger than {MOST / 1000:.0f} kB; show fewer pictures on its page.")


if __name__ == "__main__":
    main("--run" in sys.argv[1:])
