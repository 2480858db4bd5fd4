"""Flows inside sbi: its shapes, its trainers and its posteriors, on a task whose posterior is known exactly."""

import copy
import doctest
import functools
import math
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

import cflow
from cflow import bases, discrete, fields, objectives, paths, solvers
from cflow.bijections import Logit, Standardise

# zuko, which comes with sbi, turns off the argument checks of torch.distributions: on again for all other tests.
checks = Distribution._validate_args
inference = pytest.importorskip("sbi.inference", reason="sbi is not installed: pip install 'cflow[sbi]'")
from cflow.integrations.sbi import as_density_estimator, density_estimator, vector_field  # noqa: E402

Distribution.set_default_validate_args(checks)

pytestmark = pytest.mark.filterwarnings("ignore:Maximum number of epochs:UserWarning")


@pytest.fixture(autouse=True)
def as_sbi_expects(tmp_path, monkeypatch):
    """Checks off, logs into a folder of their own, and torch's global generator as it was before."""
    monkeypatch.chdir(tmp_path)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    Distribution.set_default_validate_args(False)
    yield
    Distribution.set_default_validate_args(checks)
    torch.set_rng_state(state)


def continuous(features, context, hidden=(32, 32), solver=None):
    field, base = fields.MLP(features, hidden=hidden, context=context), bases.Normal(features)
    return cflow.ContinuousFlow(field, base, path=paths.Linear(), solver=solver, context_shape=context)


def stirred(module):
    """Moves every parameter from where it starts, since some networks start by ignoring their input."""
    with torch.no_grad():
        for each in module.parameters():
            each += 0.1 * torch.randn_like(each)
    return module


SHAPES = [
    (features, condition, batch) for features in (1, 4) for condition in ((1,), (7,), (8, 8)) for batch in (1, 10)
]
coarse = functools.partial(continuous, solver=solvers.RK4(steps=4))
MEMBERS = [(discrete.maf, *each) for each in SHAPES] + [(coarse, *each) for each in SHAPES[::3]]


@pytest.mark.parametrize(("make", "features", "condition", "batch"), MEMBERS)
def test_shapes_are_those_of_sbi(make, features, condition, batch):
    embedding = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)) if len(condition) > 1 else None
    theta, x = 5 + 3 * torch.randn(50, features), 100 + torch.randn(50, *condition)
    estimator = stirred(density_estimator(make, hidden=(8,), embedding=embedding)(theta, x))
    assert estimator.input_shape == (features,)
    assert estimator.condition_shape == condition
    theta, x = theta[:batch], x[:batch]
    assert estimator.loss(theta, x).shape == (batch,)
    assert estimator.log_prob(theta, x).shape == (1, batch)
    for sample_dim in (1, 2):
        several = theta.expand(sample_dim, batch, features)
        logp = estimator.log_prob(several, x)
        assert logp.shape == (sample_dim, batch)
        # One of the batches may be one, and conditions may have a sample dimension, too.
        assert estimator.log_prob(several, x[:1]).shape == (sample_dim, batch)
        assert estimator.log_prob(several[:, :1], x).shape == (sample_dim, batch)
        assert torch.allclose(estimator.log_prob(several, x.expand(sample_dim, *x.shape)), logp, atol=1e-4)
        # Together as one by one.
        alone = torch.cat([estimator.log_prob(several[:, i : i + 1], x[i : i + 1]) for i in range(batch)], 1)
        assert torch.allclose(alone, logp, atol=1e-3)
    for shape in ((), (1,), (2, 3)):
        assert estimator.sample(shape, x).shape == (*shape, batch, features)
        draws, logp = estimator.sample_and_log_prob(shape, x)
        assert draws.shape == (*shape, batch, features)
        assert logp.shape == (*shape, batch)
        flat = draws.reshape(-1, batch, features)
        assert torch.allclose(estimator.log_prob(flat, x), logp.reshape(-1, batch), atol=1e-3)


@pytest.mark.parametrize("condition", [(1,), (7,), (8, 8)])
@pytest.mark.parametrize("batch", [1, 10])
def test_shapes_of_vector_fields(condition, batch):
    embedding = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)) if len(condition) > 1 else None
    theta, x = torch.randn(50, 4), torch.randn(50, *condition)
    field = vector_field(continuous, embedding=embedding)(theta, x)
    theta, x = theta[:batch], x[:batch]
    assert field.loss(theta, x).shape == (batch,)
    assert field.loss(theta, x, times=torch.rand(batch)).shape == (batch,)
    assert field.ode_fn(theta, x, torch.rand(batch)).shape == (batch, 4)
    assert field.ode_fn(theta, x[:1], torch.tensor(0.3)).shape == (batch, 4)
    assert field.ode_fn(theta.expand(3, batch, 4), x, torch.tensor(0.3)).shape == (3, batch, 4)


def test_densities_are_those_of_the_original_units():
    """Standardised by their own scale inside, yet the density integrates to one outside."""
    theta, x = 40 + 30 * torch.randn(200, 1), 1000 + 50 * torch.randn(200, 2)
    estimator = stirred(density_estimator(discrete.maf, layers=2, hidden=(8,))(theta, x)).double()
    grid = torch.linspace(-400, 500, 9001, dtype=torch.float64)[:, None, None]
    mass = estimator.log_prob(grid, x[:1].double()).exp().sum() * 0.1
    assert abs(mass - 1) < 1e-3
    # The condition is standardised, too: what the flow reads has mean zero and variance one.
    context = estimator.embedding_net(x.double())
    assert context.mean(0).abs().max() < 1e-3
    assert (context.std(0, correction=0) - 1).abs().max() < 1e-3
    raw = density_estimator(discrete.maf, standardise=False)(theta, x)
    assert not raw.net.transform
    assert torch.equal(raw.embedding_net(x), x)


def test_samples_stay_within_a_box():
    theta, x = 2 + 6 * torch.rand(200, 2), torch.randn(200, 3)
    box = (Standardise(2, loc=2.0, scale=6.0), Logit(2, alpha=1e-6))
    estimator = stirred(density_estimator(discrete.nsf, layers=2, hidden=(8,), transform=box)(theta, x))
    draws, logp = estimator.sample_and_log_prob((500,), x[:4])
    assert draws.min() > 2 - 1e-4
    assert draws.max() < 8 + 1e-4
    assert torch.allclose(estimator.log_prob(draws, x[:4]), logp, atol=1e-2)


# theta ~ N(0, 1) in two dimensions, x = A theta + noise: the posterior is normal.
MIX, NOISE = torch.tensor([[1.0, 0.5], [-0.5, 1.5]]), 0.5
PRIOR = MultivariateNormal(torch.zeros(2), torch.eye(2))
OBSERVED = torch.tensor([[0.8, -0.6]])


def simulate(theta):
    return theta @ MIX.T + NOISE * torch.randn(len(theta), 2)


def exact():
    covariance = torch.linalg.inv(torch.eye(2) + MIX.T @ MIX / NOISE**2)
    return MultivariateNormal((covariance @ MIX.T @ OBSERVED[0]) / NOISE**2, covariance)


def check(posterior, tolerance):
    """Checks samples against the exact posterior: means in its deviations, and the log of the widths' ratio."""
    truth, draws = exact(), posterior.sample((2000,), x=OBSERVED, show_progress_bars=False)
    deviation = truth.covariance_matrix.diagonal().sqrt()
    assert ((draws.mean(0) - truth.mean).abs() / deviation < 0.4).all()
    assert ((draws.std(0) / deviation).log().abs() < tolerance).all()
    assert abs(torch.corrcoef(draws.T)[0, 1] - truth.covariance_matrix[0, 1] / deviation.prod()) < 0.2
    return truth


def check_density(posterior, truth):
    points = truth.sample((200,))
    divergence = (truth.log_prob(points) - posterior.log_prob(points, x=OBSERVED)).mean()
    assert -0.02 < divergence < 0.1


QUIET = {"show_progress_bars": False}
SHORT = {"training_batch_size": 100, "learning_rate": 5e-3}


@pytest.mark.parametrize(
    ("build", "epochs", "tolerance"),
    [
        (density_estimator(discrete.maf, layers=3, hidden=(32, 32)), 20, 0.2),
        (density_estimator(continuous, objective=objectives.FlowMatching()), 30, 0.3),
    ],
    ids=["maf", "matching"],
)
def test_npe_finds_the_exact_posterior(build, epochs, tolerance):
    theta = PRIOR.sample((3000,))
    trainer = inference.NPE(PRIOR, build, **QUIET).append_simulations(theta, simulate(theta))
    estimator = trainer.train(max_num_epochs=epochs, **SHORT)
    check_density(trainer.build_posterior(), check(trainer.build_posterior(), tolerance))
    # Kept weights, copies and pickles give the same densities.
    with torch.no_grad():
        expected = estimator.log_prob(theta[:5], OBSERVED)
        for twin in (copy.deepcopy(estimator), pickle.loads(pickle.dumps(estimator))):
            assert torch.equal(twin.log_prob(theta[:5], OBSERVED), expected)
        double = estimator.to(torch.float64).log_prob(theta[:5].double(), OBSERVED.double())
    assert double.dtype == torch.float64
    assert torch.allclose(double, expected.double(), atol=1e-3)


def test_a_second_round_by_atoms():
    trainer = inference.NPE_C(PRIOR, density_estimator(discrete.maf, layers=3, hidden=(32, 32)), **QUIET)
    theta = PRIOR.sample((1000,))
    trainer.append_simulations(theta, simulate(theta)).train(max_num_epochs=10, **SHORT)
    proposal = trainer.build_posterior().set_default_x(OBSERVED)
    theta = proposal.sample((1000,), show_progress_bars=False)
    trainer.append_simulations(theta, simulate(theta), proposal=proposal)
    trainer.train(max_num_epochs=10, num_atoms=5, **SHORT)
    check(trainer.build_posterior(), tolerance=0.25)


def test_nle_models_the_likelihood():
    theta = PRIOR.sample((3000,))
    x = simulate(theta)
    build = density_estimator(discrete.maf, likelihood=True, layers=3, hidden=(32, 32))
    trainer = inference.NLE(PRIOR, build, **QUIET).append_simulations(theta, x)
    estimator = trainer.train(max_num_epochs=15, **SHORT)
    assert estimator.input_shape == estimator.condition_shape == (2,)
    with torch.no_grad():
        found = estimator.log_prob(x[:500], theta[:500])[0]
    truth = Independent(Normal(theta[:500] @ MIX.T, NOISE), 1).log_prob(x[:500])
    assert -0.02 < (truth - found).mean() < 0.1
    # Up to a constant, likelihood and prior make the posterior.
    potential = trainer.build_posterior().potential(exact().sample((200,)), x=OBSERVED)
    assert potential.shape == (200,)


def test_fmpe_finds_the_exact_posterior():
    theta = 3 + 2 * PRIOR.sample((3000,))  # mean and scale of theta must be undone
    prior = MultivariateNormal(torch.full((2,), 3.0), 4 * torch.eye(2))
    trainer = inference.FMPE(prior, vector_field(continuous), **QUIET)
    estimator = trainer.append_simulations(theta, simulate((theta - 3) / 2)).train(max_num_epochs=30, **SHORT)
    posterior = trainer.build_posterior()
    draws = (posterior.sample((2000,), x=OBSERVED, show_progress_bars=False) - 3) / 2
    truth = exact()
    deviation = truth.covariance_matrix.diagonal().sqrt()
    assert ((draws.mean(0) - truth.mean).abs() / deviation < 0.4).all()
    assert ((draws.std(0) / deviation).log().abs() < 0.3).all()
    points = truth.sample((100,))
    logp = posterior.log_prob(3 + 2 * points, x=OBSERVED) + 2 * math.log(2)
    assert -0.02 < (truth.log_prob(points) - logp).mean() < 0.1
    # The same flow, read by cflow: time runs the other way, and both agree.
    context = estimator.embedding_net(OBSERVED)
    own = estimator.net.log_prob(3 + 2 * points, context) + 2 * math.log(2)
    assert torch.allclose(own, logp, atol=1e-2)
    twin = pickle.loads(pickle.dumps(estimator))
    time = torch.tensor(0.4)
    assert torch.equal(twin.ode_fn(points, OBSERVED, time), estimator.ode_fn(points, OBSERVED, time))
    assert copy.deepcopy(estimator).to(torch.float64).mean_base.dtype == torch.float64


def test_a_flow_trained_before_becomes_a_posterior(generator):
    theta = PRIOR.sample((4000,))
    flow = discrete.maf(2, context=2, layers=3, hidden=(32, 32))
    optimizer = torch.optim.Adam(flow.parameters(), 5e-3)
    x = simulate(theta)
    for rows in torch.randint(len(theta), (400, 256), generator=generator):
        optimizer.zero_grad()
        (-flow.log_prob(theta[rows], x[rows]).mean()).backward()
        optimizer.step()
    posterior = inference.NPE(PRIOR).build_posterior(as_density_estimator(flow))
    check_density(posterior, check(posterior, 0.2))


def test_mistakes_are_explained():
    theta, x = torch.randn(50, 2), torch.randn(50, 3)
    with pytest.raises(ValueError, match=r"the condition has shape \[8, 8\].*pass embedding="):
        density_estimator(discrete.maf)(theta, torch.randn(50, 8, 8))
    with pytest.raises(ValueError, match=r"the modelled variable has shape \[8, 8\].*flatten it"):
        density_estimator(discrete.maf, likelihood=True)(theta, torch.randn(50, 8, 8))
    with pytest.raises(ValueError, match=r"embedding returns \[3, 8\] for one condition"):
        density_estimator(discrete.maf, embedding=nn.Linear(8, 8))(theta, torch.randn(50, 3, 8))
    with pytest.raises(TypeError, match="NormalizingFlow has no vector field"):
        vector_field(discrete.maf)(theta, x)
    scaled = lambda features, context: cflow.ContinuousFlow(
        fields.MLP(features, context=context), bases.Normal(features, scale=2.0), context_shape=context
    )
    boxed = lambda *sizes: continuous(*sizes).with_transform(Logit(2))
    for make in (scaled, boxed):
        with pytest.raises(ValueError, match="needs a standard normal base and no transforms"):
            vector_field(make)(theta, x)
    with pytest.raises(ValueError, match="flow is unconditional"):
        as_density_estimator(discrete.maf(2))
    with pytest.raises(ValueError, match="condition"):
        density_estimator(discrete.maf)(theta, x).log_prob(theta, x[:, :2])


def test_the_examples_run():
    done = doctest.testmod(sys.modules[density_estimator.__module__])
    assert done.attempted > 5
    assert done.failed == 0


def test_importing_cflow_imports_no_bridge():
    code = (
        "import sys, cflow, cflow.integrations as bridges; assert 'sbi' not in sys.modules;"
        "assert 'sbi' in dir(bridges); bridges.sbi.density_estimator; assert 'sbi' in sys.modules\n"
        "try: bridges.tensorflow\nexcept AttributeError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "no such adapter" in done.stdout


def test_a_missing_sbi_is_named():
    code = (
        "import sys, cflow; sys.modules['sbi'] = None\n"
        "try: cflow.integrations.sbi\nexcept ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("cflow.integrations.sbi: sbi is not installed")
    assert "pip install sbi" in done.stdout


@pytest.mark.parametrize("name", sorted(discrete.PRESETS))
def test_one_parameter_is_enough_for_every_preset(name, generator):
    theta, x = torch.randn(50, 1, generator=generator), torch.randn(50, 2, generator=generator)
    estimator = density_estimator(discrete.PRESETS[name], layers=1)(theta, x)
    assert estimator.log_prob(theta, x).shape == (1, 50)
    assert estimator.sample((3,), x[:2]).shape == (3, 2, 1)


def test_the_code_of_the_guide_runs():
    page = (Path(__file__).parents[2] / "recipes" / "guide" / "simulation.md").read_text()
    (block,) = re.findall(r"^```py\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    names = {}
    exec(compile(block.replace("max_num_epochs=20", "max_num_epochs=2"), "simulation.md", "exec"), names)
    assert names["draws"].shape == (500, 2)
    assert ((names["draws"] >= names["low"] - 1e-4) & (names["draws"] <= names["high"] + 1e-4)).all()
