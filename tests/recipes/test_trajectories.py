"""The recipe for snapshots as a user runs it, shortened; what it leaves behind is complete."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import cflow

RECIPE = Path(__file__).parents[2] / "recipes" / "trajectories.py"
SMALL = {"steps": 4, "batch_size": 16, "hidden": (8,)}


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("trajectories_recipe", RECIPE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses and tyro look for its names
    spec.loader.exec_module(module)
    return module


def test_the_command_leaves_a_picture_a_model_and_a_table(tmp_path):
    options = ("--steps", "4", "--batch-size", "16", "--hidden", "8", "--count", "320")
    done = subprocess.run([sys.executable, str(RECIPE), *options], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "trajectories-branching"
    names = {each.name for each in folder.iterdir()}
    assert names >= {"model", "trajectories.png", "training.png", "metrics.json", "history.csv"}
    report = json.loads((folder / "metrics.json").read_text())
    rows = report["wasserstein1"]
    assert list(rows) == ["t = 0.25", "t = 0.5", "t = 0.75", "mean"]
    for name in rows["mean"]:
        assert rows["mean"][name] == pytest.approx(sum(row[name] for row in list(rows.values())[:3]) / 3)
    # Whatever a flow learns in four steps, interpolation is nearer than no motion, and the truth nearer than both.
    assert rows["mean"]["floor"] < rows["mean"]["OT interpolation"] < rows["mean"]["no motion"]
    # Fewer points are farther apart, also of one law.
    assert all(report["wasserstein1_of_halves"][name] > rows["mean"][name] for name in ("floor", "OT interpolation"))
    assert report["best"] == min(list(rows["mean"])[:4], key=rows["mean"].get)
    assert f"nearest on the mean: {report['best']}" in done.stdout
    flow = cflow.load(folder / "model")
    assert flow.path is None
    assert flow.sample((5,)).shape == (5, 2)
    assert len(flow.base.samples) == 160


def test_a_run_is_not_overwritten_and_goes_on_where_it_stopped(recipe, tmp_path, generator):
    labels = torch.arange(75) % 3
    np.savez("cells.npz", x=(torch.randn(75, 2, generator=generator) + labels[:, None]).numpy(), t=labels.numpy())
    options = {**SMALL, "data": Path("cells.npz")}
    for folder in ("whole", "parts"):
        recipe.main(recipe.Options(out=Path(folder), **options))
    with pytest.raises(ValueError, match="resume=True"):
        recipe.main(recipe.Options(out=Path("parts"), **options))
    # Half of the last run's work is lost, and all of one before.
    newest = sorted((tmp_path / "parts" / "checkpoints").iterdir())[-1]
    shutil.rmtree(newest)
    shutil.rmtree(tmp_path / "parts" / "without-1-independent")
    recipe.main(recipe.Options(out=Path("parts"), resume=True, **options))
    one, two = (cflow.load(Path(folder) / "model").state_dict() for folder in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    one, two = (json.loads((Path(folder) / "metrics.json").read_text()) for folder in ("whole", "parts"))
    assert one["wasserstein1"] == two["wasserstein1"]


def test_files_are_read_and_components_whitened(recipe, tmp_path, generator):
    labels = torch.arange(90) % 3
    pcs = torch.randn(90, 4, generator=generator) * torch.tensor([9.0, 3.0, 1.0, 1.0]) + labels[:, None]
    np.savez("cells.npz", pcs=pcs.numpy(), sample_labels=2 * labels.numpy())
    np.savetxt(
        "cells.csv", torch.cat([labels[:, None], pcs[:, :1]], 1).numpy(), delimiter=",", header="day,a", comments=""
    )
    recipe.main(recipe.Options(data=Path("cells.npz"), components=2, interpolation="spline", **SMALL))
    flow = cflow.load("runs/trajectories-cells/model")
    assert flow.event_shape == (2,)
    rows = flow.postprocess(flow.base.samples)[0]
    assert torch.allclose(rows, ((pcs - pcs.mean(0)) / pcs.std(0, correction=0))[labels == 0, :2], atol=1e-4)
    recipe.main(recipe.Options(data=Path("cells.csv"), out=Path("line"), **SMALL))  # one feature alone
    assert (tmp_path / "line" / "trajectories.png").stat().st_size > 10_000
    assert list(json.loads((tmp_path / "line" / "metrics.json").read_text())["wasserstein1"]) == ["t = 1", "mean"]


def test_mistakes_are_explained(recipe):
    np.savez("two.npz", pcs=np.zeros((4, 2)), day=np.array([0, 0, 1, 1]))
    np.savez("odd.npz", cells=np.zeros((4, 2)), day=np.array([0, 0, 1, 1]))
    for options, message in (
        ({"data": Path("two.npz")}, "three are needed"),
        ({"data": Path("two.npz"), "components": 3}, "have 2 columns"),
        ({"data": Path("odd.npz")}, "'cells', 'day'"),
    ):
        with pytest.raises(ValueError, match=message):
            recipe.main(recipe.Options(**options))
    with pytest.raises(FileNotFoundError, match="nowhere.csv"):
        recipe.main(recipe.Options(data=Path("nowhere.csv")))
    assert not Path("runs").exists()
