"""The parts of tests/benchmarks/gpu.py on a CPU, in small: what they compute, and how the command keeps it."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cflow import solvers
from cflow.discrete.univariate.spline_kernel import available

FOLDER = Path(__file__).parent / "benchmarks"
sys.path.insert(0, str(FOLDER))

import cells  # noqa: E402
import gpu  # noqa: E402
import gpu_parts  # noqa: E402


def test_without_a_gpu_it_says_what_it_would_run(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = subprocess.run([sys.executable, FOLDER / "gpu.py"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == [*gpu_parts.PARTS, "tests"]
    assert list(tmp_path.iterdir()) == []
    root = FOLDER.parents[1]
    assert all((root / name).exists() for name in gpu.TESTS)


def test_graphs_and_spline():
    found = gpu_parts.graphs("cpu", True, capture=solvers.Wrapper)
    assert all(row["largest difference"] == 0 and row["graph, ms"] > 0 for row in found.values())
    assert len(found) == 2
    if available():
        for row in gpu_parts.spline("cpu", True).values():
            assert max(row["triton, error of value, log-slope, gradients"]) < 1e-4
            assert max(row["eager, error of value, log-slope, gradients"]) < 1e-4


def test_precision_waits_shards_and_memory():
    found = gpu_parts.precision("cpu", True)
    flow, spline = found["MLP, batch 8"], found["nsf, log_prob"]
    assert flow["gradients finite"]
    assert 0 < abs(flow["loss, bf16"] - flow["loss, float32"]) < 0.1 * flow["loss, float32"]
    assert spline["dtype under autocast"] == "torch.float32"
    assert spline["largest difference, nats"] < 0.5
    assert set(gpu_parts.syncs("cpu", True)["nsf, sample"]) == {"host waits"}
    assert len(gpu_parts.memory("cpu", True)) == 4


def test_sharded_on_one_device_the_weights_are_the_same():
    code = "import sys; sys.path.insert(0, sys.argv[1]); import gpu_parts; print(gpu_parts.fsdp('cpu', True))"
    done = subprocess.run([sys.executable, "-c", code, FOLDER], capture_output=True, text=True)
    assert "'largest difference of a weight': 0.0" in done.stdout, done.stderr


def test_what_is_done_is_kept_and_what_breaks_or_takes_too_long_is_named(tmp_path, capsys):
    asked = []

    def start(command, timeout, **options):
        name = command[command.index("--part") + 1] if "--part" in command else "tests"
        asked.append(name)
        if name == "spline":
            return SimpleNamespace(returncode=1)
        if name == "precision":
            raise subprocess.TimeoutExpired(command, timeout)
        if name != "tests":
            cells.write(tmp_path, (name,), {"a case": {"a figure": 1.0, "three": [1.0, 2.5, 3.0]}}, gpu.settings())
        return SimpleNamespace(returncode=0)

    assert gpu.drive(list(gpu_parts.PARTS), tmp_path, 100, start) == ["spline", "precision"]
    said = capsys.readouterr().out
    assert "spline: failed, exit 1" in said
    assert "precision: stopped after" in said
    assert "a case: a figure 1; three 1 2.5 3" in said
    assert asked == [*gpu_parts.PARTS, "tests"]
    asked.clear()
    assert gpu.drive(["graphs", "memory"], tmp_path, 100, start, tests=False) == []
    assert asked == []  # read from the files
    assert gpu.drive(["spline"], tmp_path, 0, start) == ["spline"]
    assert asked == []


def test_ratios_are_of_rounds_in_turn(monkeypatch):
    spent = iter([9.0] * 4 + [2.0, 1.0, 1.0, 2.0] * 2)  # the first is twice as slow in every round
    monkeypatch.setattr(gpu_parts, "clock", lambda call, device: next(spent))
    found = gpu_parts.alternate({"one": None, "two": None}, "cpu", 4)
    assert found["two, times faster"] in ([2.0, 2.0, 2.0], [0.5, 0.5, 0.5])
