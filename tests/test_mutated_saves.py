"""Changed files end in a ValueError or load what was saved: some of the changes of ``benchmarks/mutated_saves.py``."""

import importlib.util
from pathlib import Path

import torch


def benchmark():
    file = Path(__file__).parent / "benchmarks" / "mutated_saves.py"
    spec = importlib.util.spec_from_file_location("mutated_saves", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_changed_files_are_refused_or_load_what_was_saved(tmp_path):
    with torch.random.fork_rng(devices=[]):
        counts, wrong, _ = benchmark().mutate(60, 1, tmp_path)
    assert wrong == []
    assert sum(sum(each.values()) for each in counts.values()) == 60
    assert sum(each.get("refused", 0) for each in counts.values()) > 40
