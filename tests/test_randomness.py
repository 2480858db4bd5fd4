"""Whatever draws takes a generator: it fixes every number, and nothing is drawn beside it."""

import functools

import pytest
import torch

import cflow
from cflow import bases, bijections, couplings, data, discrete, divergence, fields, metrics, objectives, paths, solvers
from cflow import times as laws

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
Y = torch.randn(60, 3, generator=torch.Generator().manual_seed(2)) + 1
DRAWS = torch.randn(9, 40, 3, generator=torch.Generator().manual_seed(3)).round()  # with ties


@functools.cache
def made(kind):
    """The flows that draw, made once: their weights come from PyTorch's own generator."""
    torch.manual_seed(0)
    if kind == "spline":
        return discrete.nsf(3, layers=1, hidden=(8,))
    if kind == "levels":
        return discrete.nsf(3, layers=1, hidden=(8,)).with_transform(bijections.Dequantise(3))
    path = {"linear": paths.Linear(), "bridge": paths.BrownianBridge()}[kind]
    field = fields.MLP(3, hidden=(8,), outputs=2 if path.adds_noise else 1)
    torch.nn.init.normal_(field.output.weight)
    return cflow.ContinuousFlow(field, bases.Normal(3), path=path, solver=solvers.Euler(3))


LEVELS = torch.arange(12).reshape(4, 3)
MARUYAMA, HEUN = solvers.EulerMaruyama(3, diffusion=1.0), solvers.StochasticHeun(3, diffusion=1.0)
CASES = {
    **{f"toys.{name}": lambda g, name=name: data.toys.sample(name, 20, generator=g) for name in data.toys.NAMES},
    "ranks": lambda g: metrics.ranks(DRAWS, X.round(), generator=g),
    "pit": lambda g: metrics.pit(DRAWS, X.round(), generator=g),
    "sbc": lambda g: metrics.simulation_based_calibration(DRAWS, X.round(), generator=g).pit,
    "coverage": lambda g: metrics.expected_coverage(DRAWS[..., 0], X[:, 0].round(), generator=g).credibility,
    "tarp": lambda g: metrics.tarp(DRAWS, X, generator=g).credibility,
    "sliced": lambda g: torch.tensor(float(metrics.sliced_wasserstein2(X, Y, 8, generator=g))),
    "interpolation": lambda g: metrics.ot_interpolation(X, Y, 0.5, 7, generator=g),
    "resample": lambda g: metrics.importance(X[:, 0]).resample(X, 5, generator=g),
    "normal": lambda g: bases.Normal(3).sample((4,), generator=g),
    "uniform": lambda g: bases.Uniform(3).sample((4,), generator=g),
    "student": lambda g: bases.StudentT(3, 4.0).sample((4,), generator=g),
    "mixture": lambda g: bases.Mixture(10 * X[:5]).sample((9,), generator=g),
    "empirical": lambda g: bases.Empirical(X).sample((9,), generator=g),
    "sinkhorn": lambda g: couplings.Sinkhorn(2.0)(X, Y[:40], None, g)[0],
    "unbalanced": lambda g: torch.cat(couplings.Unbalanced(epsilon=2.0)(X, Y[:40], None, g)[:2]),
    "stratified": lambda g: laws.Stratified()(9, generator=g),
    "antithetic": lambda g: laws.Antithetic(laws.Beta(2.0, 3.0))(9, generator=g),
    "hutchinson": lambda g: divergence.Hutchinson(probes=2).begin(X, g),
    "gaussian probes": lambda g: divergence.Hutchinson("gaussian").begin(X, g),
    "hutch++": lambda g: divergence.HutchPlusPlus(3).begin(Y.reshape(15, 12), g),
    "xtrace": lambda g: divergence.XTrace(4).begin(Y.reshape(15, 12), g),
    "noise of a path": lambda g: paths.BrownianBridge().draw(X, g),
    "stochastic solver": lambda g: made("linear").sample((4,), solver=MARUYAMA, generator=g),
    "stochastic heun": lambda g: made("bridge").sample((4,), solver=HEUN, generator=g),
    "density by probes": lambda g: made("linear").log_prob(X, divergence=divergence.Hutchinson(), generator=g),
    "dequantised": lambda g: made("levels").log_prob(LEVELS, generator=g),
    "estimate": lambda g: made("levels").log_prob_estimate(LEVELS, generator=g)[1],
    "flow": lambda g: made("spline").sample((4,), generator=g),
    "matching": lambda g: objectives.FlowMatching().prepare(bases.Normal(3), X, None, g).t,
    "shortcut": lambda g: objectives.Shortcut().prepare(bases.Normal(3), X, None, g).s,
    "mean flow": lambda g: objectives.MeanFlow(share=0.3).prepare(bases.Normal(3), X, None, g).s,
    "steer": lambda g: objectives.FFJORD(steer=0.5)(made("linear"), X, generator=g),
}


@pytest.mark.parametrize("draw", CASES.values(), ids=CASES)
def test_a_generator_fixes_every_number_and_is_the_only_source(draw):
    seeded = lambda seed: draw(torch.Generator().manual_seed(seed)).detach()
    torch.manual_seed(5)
    first = seeded(0)
    torch.manual_seed(6)
    state = torch.get_rng_state()
    assert torch.equal(seeded(0), first)
    assert not torch.equal(seeded(1), first)
    assert torch.equal(torch.get_rng_state(), state)
