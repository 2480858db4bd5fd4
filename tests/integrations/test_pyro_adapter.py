"""Flows as Pyro's distributions: the posterior of a conjugate model by a guide, priors in traces and NUTS, plates."""

import importlib
import subprocess
import sys

import pytest
import torch
from torch.distributions import constraints

import cflow
from cflow import bases, discrete, fields, paths, solvers
from cflow.bijections import Dequantise, Logit

pyro = pytest.importorskip("pyro", reason="Pyro is an extra: pip install pyro-ppl")

import pyro.distributions as dist  # noqa: E402
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO  # noqa: E402
from pyro.infer.mcmc.util import initialize_model  # noqa: E402

from cflow.integrations.pyro import AutoFlow, as_pyro  # noqa: E402

NOISE, COUNT = 0.5, 4


@pytest.fixture(autouse=True)
def seeded(float64):
    """Pyro draws from torch's global generator: its state is put back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pyro.clear_param_store()
        yield
        pyro.clear_param_store()


@pytest.fixture
def design():
    return torch.tensor([[1.0, 0.5], [0.3, -1.0], [2.0, 1.0], [0.0, 1.0]])


@pytest.fixture
def seen():
    return torch.tensor([1.0, 2.0, 1.5, 0.5])


@pytest.fixture
def regression(design, seen):
    """A linear regression with a standard normal prior, whose posterior is normal."""

    def model():
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal((design @ w.unsqueeze(-1)).squeeze(-1), NOISE).to_event(1), obs=seen)

    return model


def gaussian(features=2):
    """A flow whose densities are all the normal ones with a positive determinant of their factor."""
    layer = discrete.Inverse(discrete.LULinear(features))
    return discrete.NormalizingFlow(layer, bases.Normal(features))


def fitted(model, guide, steps=200, lr=0.05):
    """Fits a guide; gives the bound at the end."""
    elbo = Trace_ELBO(num_particles=64, vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": lr, "lrd": 0.05 ** (1 / steps)}), elbo)
    losses = [svi.step() for _ in range(steps)]
    return -sum(losses[-20:]) / 20


@pytest.mark.parametrize("automatic", [False, True])
def test_a_flow_guide_finds_the_posterior_of_a_conjugate_model(regression, design, seen, automatic):
    flow = gaussian()

    def guide():
        pyro.module("flow", flow)
        pyro.sample("w", as_pyro(flow))

    bound = fitted(regression, AutoFlow(regression, flow) if automatic else guide)
    covariance = torch.linalg.inv(torch.eye(2) + design.T @ design / NOISE**2)
    mean = covariance @ design.T @ seen / NOISE**2
    marginal = NOISE**2 * torch.eye(COUNT) + design @ design.T
    evidence = torch.distributions.MultivariateNormal(torch.zeros(COUNT), marginal).log_prob(seen)
    # No draws needed: the fitted flow is the normal law of w = A z + b.
    shift = flow.decode(torch.zeros(2))[0].detach()
    factor = (flow.decode(torch.eye(2))[0].detach() - shift).T
    assert torch.allclose(shift, mean, atol=0.02)
    assert torch.allclose(factor @ factor.T, covariance, atol=0.01)
    assert bound == pytest.approx(float(evidence), abs=0.02)


def test_an_automatic_guide_lives_where_latent_variables_have_no_bounds():
    seen = torch.tensor(3.0)

    def model():
        size = pyro.sample("size", dist.LogNormal(0.0, 1.0))
        pyro.sample("seen", dist.LogNormal(size.log(), NOISE), obs=seen)

    guide = AutoFlow(model, flow := gaussian(1))
    fitted(model, guide, steps=150)
    precision = 1 + 1 / NOISE**2  # of the logarithm
    mean = float(seen.log()) / NOISE**2 / precision
    assert flow.decode(torch.zeros(1))[0].item() == pytest.approx(mean, abs=0.02)
    assert flow.decode(torch.ones(1))[0].item() == pytest.approx(mean + precision**-0.5, abs=0.02)
    assert guide()["size"] > 0


def test_a_prior_scores_its_draws_in_a_trace_and_takes_one_pass(monkeypatch):
    flow = discrete.nsf(2, layers=2, hidden=(8,))
    with pyro.plate("rows", 5):
        trace = pyro.poutine.trace(lambda: pyro.sample("x", as_pyro(flow))).get_trace()
    site = trace.nodes["x"]
    exact = flow.log_prob(site["value"])
    assert site["value"].shape == (5, 2)
    monkeypatch.setattr(discrete.NormalizingFlow, "_encode", None)  # no second pass
    trace.compute_log_prob()
    assert torch.allclose(site["log_prob"], exact, atol=1e-10)


def test_a_log_density_that_came_with_a_draw_serves_that_draw_alone():
    law = as_pyro(flow := gaussian())
    with torch.no_grad():
        x = law.rsample((3,))
    assert law.log_prob(x).requires_grad  # drawn without a graph, and one is wanted now
    x = law.rsample((3,))
    assert torch.allclose(law.log_prob(x + 1), flow.log_prob(x + 1))
    x = law.rsample((3,))
    first = law.log_prob(x)
    with torch.no_grad():
        flow.bijection.bijection.shift.add_(1.0)
        assert not torch.allclose(law.log_prob(x), first)  # an optimizer's step is seen


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_contexts_are_the_rows_of_a_plate_and_broadcast_to_another(kind):
    if kind == "discrete":
        flow = discrete.nsf(2, layers=1, hidden=(8,), context=3)
    else:
        field = fields.MLP(2, hidden=(8,), context=3)
        torch.nn.init.normal_(field.output.weight)
        flow = cflow.ContinuousFlow(
            field, bases.Normal(2), path=paths.Linear(), solver=solvers.RK4(steps=8), context_shape=3
        )
    contexts = torch.randn(3, 3)

    def model():
        with pyro.plate("repeats", 4, dim=-2), pyro.plate("rows", 3, dim=-1):
            return pyro.sample("x", as_pyro(flow, contexts))

    trace = pyro.poutine.trace(model).get_trace()
    x = trace.nodes["x"]["value"]
    assert x.shape == (4, 3, 2)
    expected = torch.stack([flow.log_prob(x[:, row], contexts[row]) for row in range(3)], 1)
    trace.compute_log_prob()
    assert torch.allclose(trace.nodes["x"]["log_prob"], expected, atol=1e-4)
    assert trace.nodes["x"]["log_prob"].shape == (4, 3)
    masked = as_pyro(flow, contexts).mask(torch.tensor([True, False, True])).log_prob(x)
    assert (masked[:, 1] == 0).all()
    assert as_pyro(flow, contexts).to_event(1).event_shape == (3, 2)


def test_the_gradient_that_hamiltonian_methods_follow(regression, design, seen):
    flow = gaussian()
    with torch.no_grad():
        for each in flow.parameters():
            each.copy_(0.5 * torch.randn(each.shape))

    def model():
        w = pyro.sample("w", as_pyro(flow))
        pyro.sample("y", dist.Normal(design @ w, NOISE).to_event(1), obs=seen)

    _, potential, _, _ = initialize_model(model)
    w = torch.randn(2, requires_grad=True)
    (slope,) = torch.autograd.grad(potential({"w": w}), w)
    shift = flow.decode(torch.zeros(2))[0]
    factor = (flow.decode(torch.eye(2))[0] - shift).T
    exact = torch.linalg.inv(factor @ factor.T) @ (w - shift) + design.T @ (design @ w - seen) / NOISE**2
    assert torch.allclose(slope, exact, atol=1e-9)


def test_nuts_samples_under_flow_priors_inside_their_support():
    inside = discrete.nsf(2, layers=1, hidden=(8,)).with_transform(Logit(2, alpha=0.0))
    assert as_pyro(inside, support=constraints.unit_interval).expand((3,)).support.event_dim == 1
    law = as_pyro(inside)  # what bounds the flow bounds the chain
    assert law.expand((3,)).support.event_dim == 1

    def model():
        p = pyro.sample("p", law)
        pyro.sample("seen", dist.Binomial(10, p).to_event(1), obs=torch.tensor([2.0, 7.0]))

    chain = MCMC(NUTS(model, max_tree_depth=3), num_samples=4, warmup_steps=4, disable_progbar=True)
    chain.run()
    p = chain.get_samples()["p"]
    assert ((p > 0) & (p < 1)).all()
    assert len(p.unique(dim=0)) > 1


def test_what_pyro_has_no_use_for_is_refused():
    with pytest.raises(ValueError, match="has no density, which Pyro needs"):
        as_pyro(cflow.ContinuousFlow(fields.MLP(2), bases.Empirical(torch.randn(5, 2)), path=paths.Linear()))
    with pytest.raises(ValueError, match="the context is missing"):
        as_pyro(discrete.nsf(2, context=3))
    with pytest.raises(TypeError, match="not a constraint"):
        as_pyro(gaussian(), support=(0, 1))
    rounding = gaussian().with_transform(Dequantise(2))
    assert not as_pyro(rounding).has_rsample
    for flow in (rounding, discrete.nsf(2, context=3)):
        with pytest.raises(ValueError, match="an unconditional flow over vectors"):
            AutoFlow(lambda: None, flow)
    with pytest.raises(TypeError, match="not a bijective flow"):
        AutoFlow(lambda: None, torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"1 latent variables, the flow 2 features"):
        AutoFlow(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)), gaussian())()


def test_importing_leaves_torchs_validation_as_it_was():
    code = (
        "from torch.distributions import Distribution; Distribution.set_default_validate_args(False);"
        "import cflow.integrations.pyro, pyro; assert Distribution._validate_args is False"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_pyro_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyro.distributions.torch_distribution", None)
    monkeypatch.delitem(sys.modules, "cflow.integrations.pyro")
    with pytest.raises(ImportError, match="pip install pyro-ppl"):
        importlib.import_module("cflow.integrations.pyro")
