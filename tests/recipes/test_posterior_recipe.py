"""The recipe for posteriors as a user runs it, shortened; its simulators are those of the benchmark it names."""

import importlib.util
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import scipy.stats
import torch

import cflow
from cflow import metrics
from cflow.standardised_context import StandardisedContext

RECIPE = Path(__file__).parents[2] / "recipes" / "posterior.py"
SMALL = {"simulations": 400, "steps": 4, "batch_size": 32, "hidden": (8,), "samples": 100, "sets": 30, "draws": 9}


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("posterior_recipe", RECIPE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses and tyro look for its names
    spec.loader.exec_module(module)
    return module


def test_the_command_leaves_pictures_a_model_and_figures(tmp_path):
    options = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", *_words(value))]
    done = subprocess.run([sys.executable, str(RECIPE), *options], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "posterior-two-moons-nsf"
    names = {each.name for each in folder.iterdir()}
    assert names >= {"model", "calibration.png", "training.png", "metrics.json", "history.csv"}
    assert names >= {f"corner-{k}.png" for k in (1, 2, 3)}
    report = json.loads((folder / "metrics.json").read_text())
    assert len(report["c2st"]) == 10
    assert "sbibm" in report["c2st_classifier"]
    assert report["c2st_mean"] > 0.8  # four steps teach nothing
    assert report["share_outside_prior"] == 0
    assert len(report["sbc_p_values"]) == 2
    assert f"C2ST against the posterior: {report['c2st_mean']:.3f}" in done.stdout
    # The model takes data as the simulator gives them, and its draws stay in the prior's box.
    flow = cflow.load(folder / "model")
    assert isinstance(flow, StandardisedContext)
    draws = flow.sample((500,), torch.tensor([[-0.6, 0.2], [0.1, 0.4]]))
    assert draws.shape == (500, 2, 2)
    assert draws.abs().max() <= 1 + 1e-4


def _words(value):
    return map(str, value) if isinstance(value, tuple) else [str(value)]


def test_it_goes_on_where_it_stopped(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "OBSERVATIONS", range(1, 4))  # a network is trained for each, five times
    options = {**SMALL, "flow": "matching", "samples": 30}
    for folder in ("whole", "parts"):
        recipe.main(recipe.Options(out=Path(folder), **options))
    with pytest.raises(ValueError, match="resume=True"):
        recipe.main(recipe.Options(out=Path("parts"), **options))
    shutil.rmtree(sorted((tmp_path / "parts" / "checkpoints").iterdir())[-1])
    recipe.main(recipe.Options(out=Path("parts"), resume=True, **options))
    one, two = (cflow.load(Path(folder) / "model").state_dict() for folder in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    one, two = (json.loads((Path(folder) / "metrics.json").read_text()) for folder in ("whole", "parts"))
    assert one["coverage"] == two["coverage"]
    assert one["c2st"] == two["c2st"]


def test_slcp_without_a_reference_is_checked_for_calibration_alone(recipe, capsys):
    recipe.main(recipe.Options(task="slcp", flow="maf", **SMALL))
    report = json.loads(Path("runs/posterior-slcp-maf/metrics.json").read_text())
    assert "c2st" not in report
    assert len(report["sbc_p_values"]) == 5
    assert "--reference" in capsys.readouterr().out


def crescent_density(noise):
    """The noise of two moons in closed form: a normal radius, a uniform angle over the right half."""
    x, y = noise[..., 0] - 0.25, noise[..., 1]
    radius = (x.square() + y.square()).sqrt()
    log = torch.distributions.Normal(0.1, 0.01).log_prob(radius) - radius.log() - math.log(math.pi)
    return torch.where(x > 0, log.exp(), 0.0)


def test_exact_draws_of_two_moons_have_the_density_of_prior_times_likelihood(recipe, generator):
    """Shares of the draws in the cells of a grid, against the closed form summed over them."""
    task = recipe.TASKS["two-moons"]
    x = torch.tensor([-0.1, 0.15])
    draws = task.posterior(x, 20_000, generator)
    assert draws.abs().max() <= 1
    middle = (torch.arange(2000, dtype=torch.float64) + 0.5) / 1000 - 1
    theta = torch.cartesian_prod(middle, middle)
    shift = torch.stack([-theta.sum(1).abs(), theta[:, 1] - theta[:, 0]], 1) / math.sqrt(2)
    density = crescent_density(x - shift).reshape(20, 100, 20, 100).sum((1, 3)).flatten()
    cell = ((draws + 1) * 10).long().clamp(0, 19)
    counts = torch.bincount(cell[:, 0] * 20 + cell[:, 1], minlength=400).double()
    expected = density / density.sum() * len(draws)
    assert counts[expected == 0].sum() == 0
    busy = expected > 20
    pooled = (
        torch.cat([counts[busy], counts[~busy].sum()[None]]),
        torch.cat([expected[busy], expected[~busy].sum()[None]]),
    )
    # The sum over a grid is good to a thousandth of a cell's content; fails once in 10,000 seeds.
    assert scipy.stats.chisquare(*(each.numpy() for each in pooled)).pvalue > 1e-4


def test_the_prior_cuts_the_exact_draws(recipe, generator):
    task = recipe.TASKS["two-moons"]
    x = task.simulate(torch.tensor([[0.99, 0.3]]), generator)[0]  # a crescent reaches over the bound
    draws = task.posterior(x, 500, generator)
    assert draws.shape == (500, 2)
    assert draws.abs().max() <= 1
    assert draws.abs().max() > 0.97


def slcp_log_likelihood(theta, x):
    """Four normal points of the mean and covariance that theta says."""
    first, second, correlation = theta[:, 2] ** 2, theta[:, 3] ** 2, theta[:, 4].tanh()
    across = correlation * first * second
    covariance = torch.stack([torch.stack([first**2, across], 1), torch.stack([across, second**2], 1)], 1)
    law = torch.distributions.MultivariateNormal(theta[:, None, :2], covariance[:, None])
    return law.log_prob(x.reshape(-1, 4, 2)).sum(1)


def test_slcp_simulates_its_likelihood(recipe, generator):
    """Squared distances under the covariance are chi-square, for every theta and all four points."""
    task = recipe.TASKS["slcp"]
    theta = recipe.prior(task, 4000, generator).double()
    x = task.simulate(theta.float(), generator).double()
    at_mean = slcp_log_likelihood(theta, theta[:, :2].repeat(1, 4))
    squared = -2 * (slcp_log_likelihood(theta, x) - at_mean)
    assert scipy.stats.kstest(squared.numpy(), "chi2", args=(8,)).pvalue > 1e-4  # fails once in 10,000 seeds


def test_two_moons_agrees_with_the_reference_posteriors(recipe, real_data, generator):
    options = recipe.Options(reference=real_data / "sbibm", samples=1000)
    for x, _, reference in recipe.targets(options, recipe.TASKS["two-moons"], generator)[:2]:
        own = recipe.TASKS["two-moons"].posterior(x, 1000, generator)
        found = metrics.energy_distance(own, reference)
        assert abs(found.value) < 4 * found.standard_error  # fails once in 10,000 seeds


def test_slcp_leaves_its_reference_posterior_as_it_is(recipe, real_data, generator):
    """Metropolis steps under the likelihood keep the law of the reference draws, and move them far."""
    options = recipe.Options(task="slcp", reference=real_data / "sbibm", samples=4000)
    x, _, reference = recipe.targets(options, recipe.TASKS["slcp"], generator)[0]
    start, kept = reference.double().split(2000)
    theta, x, spread = start.clone(), x.double(), start.std(0)
    log = slcp_log_likelihood(theta, x)
    for step in range(150):
        moved = theta + (0.05, 0.15, 0.5)[step % 3] * spread * torch.randn(theta.shape, generator=generator).double()
        inside = (moved.abs() <= 3).all(1)
        new = torch.where(inside, slcp_log_likelihood(moved.clamp(-3, 3), x), -math.inf)
        accept = torch.rand(len(theta), generator=generator).log() < new - log
        theta, log = torch.where(accept[:, None], moved, theta), torch.where(accept, new, log)
    assert ((theta - start).abs().mean(0) > 0.05 * spread).all()
    found = metrics.energy_distance(theta, kept)
    assert abs(found.value) < 4 * found.standard_error  # fails once in 10,000 seeds


def test_mistakes_are_explained(recipe):
    with pytest.raises(OSError, match=r"nowhere.two_moons.files.num_observation_1"):
        recipe.main(recipe.Options(reference=Path("nowhere"), **SMALL))
    assert not Path("runs").exists()


def test_a_damaged_table_of_the_benchmark_is_named(recipe, tmp_path):
    for name, content in (
        ("words.csv", b"a,b\n1,x\n"),
        ("draws.csv.bz2", b"no archive"),
        ("cut.csv.bz2", b"BZh91AY&SY"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: no table of the benchmark"):
            recipe.read(tmp_path / name)
