"""A hundred damaged files of all formats; ``tests/benchmarks/mutations.py`` reads thousands."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "mutations.py"


@pytest.fixture(scope="module")
def mutations():
    spec = importlib.util.spec_from_file_location("mutations", SCRIPT)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_damaged_files_are_read_or_refused_by_name(mutations, tmp_path):
    result = mutations.attack(mutations.readers(), 8, 0, tmp_path)
    assert not result.failures
    total = sum(result.counts.values(), start=next(iter(result.counts.values())).__class__())
    assert total["files"] >= 100
    assert total["read"] > 10
    assert total["refused"] > 30
    assert not list(tmp_path.iterdir())


def test_what_must_not_happen_is_found(mutations, tmp_path):
    """Readers that lose lines, fail otherwise, or change values are told from sound ones."""
    tables, arrays = mutations.tables(), mutations.arrays()
    first, npz = tables[0], next(each for each in arrays if each.name == "a.npz")

    def loses(path):
        file, chunks = first.read(path)
        return file, chunks[:-1]

    def fails(path):
        raise KeyError(path)

    for name, read, check in (
        (first.name, loses, first.check),
        (first.name, fails, first.check),
        (npz.name, lambda path: npz.read(path) + 1, npz.check),
        (npz.name, lambda path: (_ for _ in ()).throw(ValueError("no")), npz.check),
    ):
        subject = mutations.Subject(name, first.raw if name == first.name else npz.raw, read, check)
        assert mutations.attack([subject], 40, 0, tmp_path).failures
