"""The recipe for posteriors as a user runs it, shortened; its simulators are those of the benchmark it names."""

import csv
import dataclasses
import importlib.util
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch

import cflow
from cflow import metrics
from cflow.cli import main as command
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


# Your own simulations

OWN = {"steps": 20, "batch_size": 32, "hidden": (8,), "samples": 50, "draws": 9, "flow": "maf"}


def linear(rng, rows=400):
    """A Gaussian prior, three noisy linear measurements of two parameters."""
    matrix = np.array([[1.0, 0.5], [0.0, 1.0], [0.3, -0.7]])
    theta = rng.normal(size=(rows, 2))
    return matrix, theta, theta @ matrix.T + 0.5 * rng.normal(size=(rows, 3))


def test_own_simulations_give_the_posterior_that_is_known(recipe, capsys):
    """A linear Gaussian model: mean and covariance in closed form; sampling errors of 4000 draws are below 0.02."""
    matrix, theta, x = linear(np.random.default_rng(0), 3000)
    # Units of their own, and offsets that float32 would lose.
    scale, offset = np.array([1e-3, 20.0]), np.array([1.1e6, -7.0])
    np.savez("sims.npz", theta=offset + scale * theta, x=1e-21 * x, names=np.array(["time", "mass"]))
    observed = (0.9, -0.4, 0.8)
    recipe.main(
        recipe.Options(
            data=Path("sims.npz"), observation=tuple(f"{1e-21 * each}" for each in observed), flow="maf", hidden=(16,),
            steps=400, lr=5e-3, samples=4000, draws=49,
        )
    )  # fmt: skip
    precision = np.eye(2) + matrix.T @ matrix / 0.25
    mean = np.linalg.solve(precision, matrix.T @ np.array(observed) / 0.25)
    deviations = np.sqrt(np.diag(np.linalg.inv(precision)))
    folder = Path("runs/posterior-sims-maf")
    with (folder / "samples.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert list(rows[0]) == ["observation", "time", "mass"]
    assert len(rows) == 4000
    draws = (np.array([[float(row["time"]), float(row["mass"])] for row in rows]) - offset) / scale
    assert np.abs((draws.mean(0) - mean) / deviations).max() < 0.2
    assert np.abs(draws.std(0) / deviations - 1).max() < 0.15
    report = json.loads((folder / "metrics.json").read_text())
    said = capsys.readouterr().out
    assert "2700 simulations to learn from, 300 to check (2 parameters, 3 numbers of data)" in said
    assert f"  verdict: {report['verdict']}\n" in said
    assert "mean log-density of the truth" in said
    (p,) = report["observation_p_values"]
    assert p > 0.01
    assert f"like the simulations? p = {p:.3g} (below 0.01: no)" in said
    assert report["log_prob_of_truth"] > report["log_prob_of_prior"] + 1
    assert min(report["sbc_p_values"]) > 1e-3
    assert abs(report["coverage_excess"]) < 4 / math.sqrt(12 * 300)
    low, middle, high = report["intervals"][0]["mass"]
    assert low < -7 + 20 * mean[1] < high
    assert middle == pytest.approx(float(np.median([float(row["mass"]) for row in rows])), rel=1e-4)
    # The same model by the command line, and its density against the closed form.
    command(["sample", str(folder), "--context", str(folder / "observations.csv"), "-n", "5", "-o", "more.csv"])
    with Path("more.csv").open() as lines:
        assert next(iter(csv.DictReader(lines))).keys() == {"time", "mass", "x 1", "x 2", "x 3"}
    flow = cflow.load(folder / "model")
    truth = scipy.stats.multivariate_normal(mean, np.linalg.inv(precision))
    points = torch.from_numpy(offset + scale * truth.rvs(500, random_state=1))
    with torch.no_grad():
        found = flow.log_prob(points, 1e-21 * torch.tensor(observed, dtype=torch.float64))
    exact = truth.logpdf((points.numpy() - offset) / scale) - np.log(scale).sum()
    assert np.abs(found.numpy() - exact).mean() < 0.2


def test_failed_simulations_are_counted_and_whole_numbers_stay_whole(recipe, capsys):
    rng = np.random.default_rng(0)
    count, rate = rng.integers(1, 9, 300), rng.uniform(0, 2, 300)
    x = rng.poisson(count * rate).astype(float)
    x[[3, 40]] = np.nan, np.inf
    np.savez("sims.npz", parameters=np.stack([count, rate], 1), data=x)
    options = {**OWN, "data": Path("sims.npz"), "bounds": (1.0, 8.0, 0.0, 2.0)}
    with pytest.raises(ValueError, match=r"2 of 300 simulations hold NaN or infinity \(rows 3, 40\); pass --drop-mis"):
        recipe.main(recipe.Options(**options))
    assert not Path("runs").exists()
    recipe.main(recipe.Options(**options, drop_missing=True))
    said = capsys.readouterr().out
    for part in (
        "dropped 2 simulations of 300",
        "spread over their steps: theta 1",
        "29 held-out simulations are few",
        "draws outside the prior: 0.00%",
        "held-out simulation 3:",
        "the same command with --observation",
    ):
        assert part in said
    with Path("runs/posterior-sims-maf/samples.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [row["observation"] for row in rows] == ["1"] * 50 + ["2"] * 50 + ["3"] * 50
    assert {row["theta 1"] for row in rows} <= set("12345678")
    assert all(0 <= float(row["theta 2"]) <= 2 and len(row["theta 2"]) <= 10 for row in rows)
    # Another file of this name has a folder of its own; an observation unlike all others is named.
    Path("other").mkdir()
    np.savez("other/sims.npz", theta=rng.normal(size=(120, 1)), x=rng.normal(size=(120, 2, 2)))
    recipe.main(recipe.Options(**{**OWN, "data": Path("other/sims.npz"), "observation": ("0", "1", "99", "0")}))
    said = capsys.readouterr().out
    assert "writing to runs/posterior-sims-maf-2/" in said
    assert "data of shape [2, 2] are flattened to 4 numbers" in said
    assert "observation 1 is unlike all simulations" in said
    assert "x 3 = 99 (simulated: " in said
    assert "like the simulations? p = 0.0164 (below 0.01: no)" in said  # one in 61, the smallest of 120 simulations


def oscillator(theta, generator):
    """A damped oscillation, read 20 times with noise of 0.2."""
    times = torch.linspace(0, 3, 20, dtype=torch.float64)
    clean = torch.exp(-theta[:, 1:] * times) * torch.cos(2 * math.pi * theta[:, :1] * times)
    return clean + 0.2 * torch.randn(clean.shape, generator=generator, dtype=torch.float64)


def own_simulations(recipe, x):
    theta = torch.zeros(len(x), 1, dtype=torch.float64)
    names = tuple(f"x {k + 1}" for k in range(x.shape[1]))
    return recipe.simulations.Simulations(theta, x, ("theta",), names, tuple(x.shape[1:]), [6])


def test_an_observation_whose_numbers_do_not_fit_together_is_found(recipe, generator):
    """A zigzag of three times the noise stays within the range of every number, and no simulation has it."""
    low, high = torch.tensor([[0.5, 0.0], [2.0, 1.0]], dtype=torch.float64)
    x = oscillator(low + (high - low) * torch.rand(3000, 2, generator=generator, dtype=torch.float64), generator)
    own = own_simulations(recipe, x)
    good = oscillator(torch.tensor([[1.2, 0.4]], dtype=torch.float64), generator)
    zigzag = good + 0.6 * torch.tensor([1, -1] * 10, dtype=torch.float64)
    observed = torch.cat([good, zigzag.clamp(x.min(0).values, x.max(0).values)])
    assert not any(recipe.simulations.unusual(each, own) for each in observed)
    p = recipe.simulations.p_values(observed, own)
    assert p[0] > 0.02
    assert p[1] == pytest.approx(1 / 1501)
    first, *warnings = recipe.simulations.compared(observed, own, p)
    assert first.endswith(f"p = {p[0]:.3g}, 0.000666 (below 0.01: no)")
    assert len(warnings) == 1
    assert "observation 2 is unlike all simulations" in warnings[0]


def test_the_p_value_of_an_observation_is_exact(recipe, generator):
    """Skewed, correlated, of any unit, with one constant: for new simulations p is uniform on whole ranks."""
    draw = lambda n: torch.randn(n, 3, generator=generator, dtype=torch.float64).exp().cumsum(1)
    make = lambda n: torch.cat([1e-21 * draw(n), torch.ones(n, 1, dtype=torch.float64)], 1)
    p = [each for _ in range(20) for each in recipe.simulations.p_values(make(5), own_simulations(recipe, make(100)))]
    assert set(p) <= {k / 51 for k in range(1, 52)}
    assert scipy.stats.kstest(p, "uniform").pvalue > 1e-4
    hole = torch.randn(400, 2, generator=generator, dtype=torch.float64)
    hole /= hole.norm(dim=1, keepdim=True)  # nothing is near the middle of a circle
    middle, on_it = torch.zeros(1, 2, dtype=torch.float64), hole[:1]
    found = recipe.simulations.p_values(torch.cat([middle, on_it]), own_simulations(recipe, hole))
    assert found[0] == pytest.approx(1 / 201)
    assert found[1] > 0.01


def test_what_is_not_compared_is_said(recipe):
    own = own_simulations(recipe, torch.randn(120, 13, dtype=torch.float64))
    assert recipe.simulations.p_values(own.x[:1], own) is None
    (line,) = recipe.simulations.compared(own.x[:1], own, None)
    assert "not checked: whether the 13 numbers" in line
    assert "too many for 120 simulations" in line


def judged(recipe, generator, offset=0.0, width=1.0, count=500, posterior=None):
    """Judges the known posterior of two normal parameters after it is moved and scaled, in units of its deviation."""
    theta = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    x = theta + 0.5 * torch.randn(count, 2, generator=generator, dtype=torch.float64)
    deviation = math.sqrt(0.2)
    mean = 0.8 * x + deviation * torch.tensor([offset, 0.0])
    claim = posterior or torch.distributions.Normal(mean, width * deviation)
    draws = claim.mean + claim.stddev * torch.randn(99, count, 2, generator=generator, dtype=torch.float64)
    ranked = metrics.simulation_based_calibration(draws, theta, generator=generator)
    logp = claim.log_prob(theta).sum(-1)
    coverage = metrics.expected_coverage(claim.log_prob(draws).sum(-1), logp, generator=generator)
    prior, kind = recipe.checks.log_prior(theta, theta, None)
    assert kind == "normal, fitted"
    assert prior == pytest.approx(-math.log(2 * math.pi) - 1, abs=0.2)
    return recipe.checks.judge(recipe.checks.Checked(ranked, coverage, logp), ("a", "b"), prior)


def test_the_verdict_names_the_fault(recipe, generator):
    kind, size = judged(recipe, generator, width=0.7)
    assert kind == "too narrow"
    assert re.fullmatch(r"by 0\.\d{3} at 0\.\d\d \(error 0\.0\d\d\)", size)
    text = recipe.checks.verdict(kind, size, "simulate 2 to 4 times as many", "train longer")
    assert text == f"too narrow {size}. Do not quote its intervals; simulate 2 to 4 times as many"
    assert judged(recipe, generator, width=1.5)[0] == "too wide"
    kind, size = judged(recipe, generator, offset=0.5)
    assert kind == "shifted"
    assert size.startswith("draws of a are too high (mean rank 0.3")
    assert "calibrated, on average over the prior" in recipe.checks.verdict(*judged(recipe, generator), "", "")
    assert judged(recipe, generator, count=60)[0] == "untested"
    normal = torch.distributions.Normal(torch.zeros(500, 2).double(), torch.ones(500, 2).double())
    assert judged(recipe, generator, posterior=normal)[0] == "uninformed"


def test_a_parameter_alone_can_be_too_narrow(recipe):
    """Regions of the right size on average, and one parameter whose draws are too narrow."""
    count = 500
    flat = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    coverage = metrics.expected_coverage(torch.rand(99, count), torch.rand(count))
    coverage = dataclasses.replace(coverage, excess=0.0)
    pit = torch.stack([flat, flat], 1)
    ranked = metrics.Calibration(pit, 99, pit, 20, None, None, torch.zeros(2), torch.tensor([1.0, 1.3]))
    checked = recipe.checks.Checked(ranked, coverage, torch.ones(count))
    assert recipe.checks.judge(checked, ("a", "b"), 0.0) == ("too narrow", "in b (dispersion 1.30, error 0.04)")


def test_advice_does_not_go_in_a_circle(recipe):
    def advised(stopped, **options):
        options = recipe.Options(data=Path("sims.npz"), **options)
        problem = SimpleNamespace(own=object(), test=torch.zeros(2, 500), theta=torch.zeros(4000, 2), steps=3000)
        return recipe.advice(options, problem, SimpleNamespace(stopped=stopped))

    assert advised(False) == ("simulate 2 to 4 times as many", "train longer (--steps 6000)")
    assert advised(True, flow="maf", hidden=(16, 16))[1] == "take larger networks (--hidden 32 32)"
    assert "--hidden 256 256" in advised(True, flow="matching")[1]


def test_observations_are_read_as_they_come(recipe):
    rng = np.random.default_rng(0)
    _, theta, x = linear(rng, 120)
    np.savez("sims.npz", theta=theta, x=x, x_names=np.array(["a", "b", "c"]))
    own = recipe.simulations.read(Path("sims.npz"), (), False, 0)
    assert sorted(own.x[:, 0].tolist()) == sorted(x[:, 0].tolist())
    assert (own.x_names, own.names) == (("a", "b", "c"), ("theta 1", "theta 2"))
    two = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.5]])
    np.save("two.npy", two)
    np.save("one.npy", two[1])
    np.savez("two.npz", x_o=two)
    np.savetxt("two.txt", two)
    np.savetxt("named.csv", two[:, ::-1], delimiter=",", header="c,b,a", comments="")
    np.savetxt("column.csv", two[1], delimiter=",")
    for words, expected in (
        (("two.npy",), two), (("one.npy",), two[1:]), (("two.npz",), two), (("two.txt",), two), (("named.csv",), two),
        (("column.csv",), two[1:]), (("4", "5", "6.5"), two[1:]),
    ):  # fmt: skip
        assert recipe.simulations.observations(words, own).tolist() == expected.tolist()
    Path("words.txt").write_text("no numbers")
    np.save("nan.npy", np.array([1.0, np.nan, 2.0]))
    for words, message in (
        (("1", "2"), "these are 2 numbers, and the data of one simulation are 3"),
        (("1", "b", "2"), "pass numbers alone, or the name of one file"),
        (("nowhere.npy",), "there is no such file, and it is not a number"),
        (("words.txt",), "not read as numbers"),
        (("nan.npy",), "NaN or infinity in row 0"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            recipe.simulations.observations(words, own)


def test_mistakes_in_own_simulations_are_explained(recipe):
    rng = np.random.default_rng(0)
    theta, x = rng.normal(size=(150, 2)), rng.normal(size=(150, 3))
    np.savez("good.npz", theta=theta, x=x)
    np.savez("short.npz", theta=theta[:20], x=x[:20])
    np.savez("lengths.npz", theta=theta, x=x[:100])
    np.savez("odd.npz", a=theta, b=x)
    np.savez("constant.npz", theta=theta * [1, 0], x=x)
    np.savez("names.npz", theta=theta, x=x, names=np.array(["a"]))
    Path("text.npz").write_text("theta")
    for options, message in (
        ({"data": "sims.csv"}, "read from a .npz file; write one by numpy.savez"),
        ({"data": "nowhere.npz"}, "there is no such file"),
        ({"data": "short.npz"}, "20 simulations; 100 or more are needed"),
        ({"data": "lengths.npz"}, "150 rows of parameters and 100 of data"),
        ({"data": "odd.npz"}, "the arrays a, b, and parameters are looked for as theta, "),
        ({"data": "constant.npz"}, "theta 2 has one value in all simulations"),
        ({"data": "names.npz"}, "names has 1 different names for 2 columns"),
        ({"data": "text.npz"}, "not a file that numpy.savez wrote"),
        ({"data": "good.npz", "bounds": (0.0, 1.0, 2.0)}, "two numbers for all of 2 parameters, or two for each"),
        ({"data": "good.npz", "bounds": (1.0, -1.0)}, "each pair is a lower and a higher number"),
        ({"data": "good.npz", "bounds": (-1.0, 1.0)}, "theta 1 lies outside in"),
        ({"data": "good.npz", "task": "slcp"}, "--task: this option does not go with --data"),
        ({"observation": ("1", "2")}, "--observation: this option goes with --data alone"),
    ):
        options = options | ({"data": Path(options["data"])} if "data" in options else {})
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            recipe.main(recipe.Options(**options))
    assert not Path("runs").exists()
