"""The recipe for posteriors as a user runs it, shortened; its closed forms against independent ones."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import scipy.stats
import torch

import cflow

RECIPE = Path(__file__).parents[2] / "recipes" / "variational.py"
SMALL = {"steps": 4, "batch_size": 16, "hidden": (8,), "layers": 2, "draws": 200}


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("variational_recipe", RECIPE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses and tyro look for its names
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "REFERENCE", 5000)
    return module


def test_the_command_leaves_pictures_a_model_and_figures(tmp_path):
    options = ("--steps", "4", "--batch-size", "16", "--hidden", "8", "--layers", "2", "--draws", "400")
    done = subprocess.run([sys.executable, str(RECIPE), *options], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "variational-linear"
    names = {each.name for each in folder.iterdir()}
    assert names >= {"model", "marginals.png", "training.png", "metrics.json", "history.csv", "checkpoints"}
    report = json.loads((folder / "metrics.json").read_text())
    assert report["kl_reverse"] > 5 * report["kl_reverse_standard_error"]  # nothing is learned in four steps
    assert 1 / 400 <= report["effective_share"] <= 1
    flow = cflow.load(folder / "model")
    assert flow.sample((5,)).shape == (5, 12)
    assert len(report["columns"]) == 12
    assert "log_evidence_exact" in done.stdout


def test_the_evidence_and_the_posterior_are_those_of_the_model(recipe, generator):
    """Against the Student-t law of the answers, and against weighted draws of the posterior itself."""
    x, y, names = recipe.table(recipe.Options(rows=15))
    model = recipe.LinearRegression(x, y, names)
    law = scipy.stats.multivariate_t(
        shape=model.b / model.a * (torch.eye(15, dtype=torch.float64) + x @ x.t()).numpy(), df=2 * model.a
    )
    assert model.log_evidence == pytest.approx(law.logpdf(y.numpy()), rel=1e-9)
    # The mean and the deviation of draws, and the marginals' own.
    drawn = model.sample(40_000, generator)
    mean, spread = model.moments()
    assert float(((drawn.mean(0) - mean) / spread).abs().max()) < 5 / math.sqrt(40_000)  # once in 100,000 seeds
    assert float((drawn.std(0) / spread - 1).abs().max()) < 0.05
    for index in (0, 3, 11):
        centre, reach = float(mean[index]), 12 * float(spread[index])
        grid = torch.linspace(centre - reach, centre + reach, 4001, dtype=torch.float64)
        density = model.marginal(index, grid)
        assert float(torch.trapezoid(density, grid)) == pytest.approx(1, abs=1e-3)
        assert float(torch.trapezoid(density * grid, grid)) == pytest.approx(float(mean[index]), abs=1e-3)
    # A law around the mode, weighted: the joint density has this evidence.
    _, judged = recipe.around(model, 40_000, generator)
    assert judged.pareto_k < 0.7
    error = judged.log_evidence.standard_error
    assert abs(judged.log_evidence.value - model.log_evidence) < 4.5 * error < 0.2  # once in 100,000 seeds


@pytest.mark.slow
def test_training_finds_the_posterior(recipe, tmp_path):
    recipe.main(recipe.Options(steps=300, lr=5e-3, hidden=(16,), draws=4000, out=Path("fit")))
    report = json.loads((tmp_path / "fit" / "metrics.json").read_text())
    assert report["kl_reverse"] < 0.1
    assert report["kl_forward"] < 0.1
    assert report["effective_share"] > 0.6
    difference = abs(report["log_evidence"] - report["log_evidence_exact"])
    assert difference < 4.5 * report["log_evidence_standard_error"] + 1e-6
    assert report["error_of_means"] < 0.15


@pytest.mark.parametrize(
    "options",
    [
        {"model": "logistic", "objective": "reverse-kl", "flow": "iaf"},
        {"objective": "dreg", "flow": "realnvp", "samples": 4},
        {"objective": "alpha", "alpha": 0.3},
        {"objective": "forward-kl", "flow": "maf"},
        {"flow": "continuous", "draws": 60, "rows": 30},
    ],
)
def test_every_way_runs(recipe, tmp_path, options):
    recipe.main(recipe.Options(out=Path("out"), **(SMALL | options)))
    report = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert all(math.isfinite(value) for key, value in report.items() if key not in ("pareto_k", "columns"))
    assert (tmp_path / "out" / "marginals.png").stat().st_size > 10_000


def test_a_run_is_not_overwritten_and_goes_on_where_it_stopped(recipe, tmp_path):
    for folder, steps in (("whole", 4), ("parts", 4)):
        recipe.main(recipe.Options(out=Path(folder), **(SMALL | {"steps": steps})))
    with pytest.raises(ValueError, match="resume=True"):
        recipe.main(recipe.Options(out=Path("parts"), **SMALL))
    newest = sorted((tmp_path / "parts" / "checkpoints").iterdir())[-1]
    for file in sorted(newest.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    newest.rmdir()
    recipe.main(recipe.Options(out=Path("parts"), resume=True, **SMALL))
    one, two = (cflow.load(Path(folder) / "model").state_dict() for folder in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_mistakes_are_explained(recipe):
    for options, message in (
        ({"rows": 1}, "--rows 1: the table has 442 rows"),
        ({"rows": 1000, "model": "logistic"}, "569 rows"),
        ({"samples": 4}, "--objective path --samples 4"),
        ({"alpha": 0.2}, "--objective path --alpha 0.2"),
        ({"objective": "dreg", "samples": 64, "batch_size": 8}, "--samples 64 --batch-size 8"),
        ({"objective": "alpha", "alpha": 1.0}, "finite and not 1"),
    ):
        with pytest.raises(ValueError, match=message):
            recipe.main(recipe.Options(**options))
    assert not Path("runs").exists()
