"""Generators: what is one, and one for each row."""

import pytest
import torch

import cflow
from cflow import bases, bijections, couplings, discrete, divergence, fields, objectives, paths, solvers, times
from cflow.draws import check_generator, draw_rows

DATA = torch.linspace(-1, 1, 8).reshape(4, 2)


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def linear(**options):
    torch.manual_seed(0)
    field = fields.MLP(2, hidden=(8,))
    torch.nn.init.normal_(field.output.weight)
    return cflow.ContinuousFlow(field, bases.Normal(2), path=paths.Linear(), solver=solvers.Heun(3), **options)


@pytest.mark.parametrize(
    ("owner", "draw"),
    [
        ("flow.sample", lambda g: linear().sample((2,), generator=g)),
        ("flow.sample_and_log_prob", lambda g: linear().sample_and_log_prob((2,), generator=g)),
        ("flow.rsample", lambda g: linear().rsample((2,), generator=g)),
        ("flow.log_prob", lambda g: linear().log_prob(DATA, generator=g)),
        ("flow.log_prob_estimate", lambda g: linear().log_prob_estimate(DATA, generator=g)),
        ("flow.encode", lambda g: linear().encode(DATA, generator=g)),
        ("flow.decode", lambda g: linear().decode(DATA, generator=g)),
        ("flow.transport", lambda g: linear().transport(DATA, 0.0, 1.0, generator=g)),
        ("flow.trajectory", lambda g: linear().trajectory(DATA, generator=g)),
        ("flow.sample", lambda g: discrete.nsf(2, layers=1).sample((2,), generator=g)),
        ("Normal.sample", lambda g: bases.Normal(2).sample((2,), generator=g)),
        ("FlowMatching", lambda g: objectives.FlowMatching()(linear(), DATA, generator=g)),
        (r"Uniform\(\)", lambda g: times.Uniform()(3, generator=g)),
        ("moons", lambda g: cflow.data.toys.moons(3, generator=g)),
        ("eight_gaussians", lambda g: cflow.data.toys.eight_gaussians(3, generator=g)),
        ("OptimalTransport", lambda g: couplings.OptimalTransport()(DATA, DATA, generator=g)),
        ("Sinkhorn", lambda g: couplings.Sinkhorn()(DATA, DATA, generator=g)),
    ],
)
def test_a_seed_is_no_generator(owner, draw):
    with pytest.raises(TypeError, match=rf"^{owner}\(generator=42\): .*pass torch.Generator\(\).manual_seed\(42\)"):
        draw(42)


def test_rows_of_their_own_where_one_generator_draws_for_all():
    with pytest.raises(TypeError, match=r"FlowMatching\(generator=a list of 2\): this takes one generator"):
        objectives.FlowMatching()(linear(), DATA, generator=seeded(0, 1))
    with pytest.raises(TypeError, match="each entry must be a generator"):
        check_generator("flow.sample", [0, 1], by_row=True)
    with pytest.raises(ValueError, match="a list of 2 for draws of shape .3, 2.*pass 3"):
        draw_rows(torch.randn, (3, 2), seeded(0, 1))
    assert draw_rows(torch.randn, (0, 2), []).shape == (0, 2)


FLOWS = {
    "an ODE": (lambda: linear(), {}),
    "an SDE": (lambda: linear(), {"solver": solvers.EulerMaruyama(4, diffusion=0.5)}),
    "a discrete-time flow": (lambda: discrete.nsf(2, layers=1, hidden=(8,)), {}),
    "a mixture": (lambda: discrete.NormalizingFlow(discrete.LULinear(2), bases.Mixture(DATA, 0.1)), {}),
    "samples": (lambda: discrete.NormalizingFlow(discrete.LULinear(2), bases.Empirical(DATA)), {}),
    "a heavy tail": (lambda: discrete.NormalizingFlow(discrete.LULinear(2), bases.StudentT(2, 3.0)), {}),
}


@pytest.mark.parametrize("name", FLOWS)
def test_a_sample_with_a_generator_of_its_own_does_not_depend_on_its_batch(name):
    build, options = FLOWS[name]
    flow = build().double()
    together = flow.sample((2, 3), generator=seeded(*range(6)), **options).reshape(6, 2)
    for seed in (0, 4):
        alone = flow.sample((1,), generator=seeded(seed), **options)[0]
        torch.testing.assert_close(alone, together[seed], rtol=1e-12, atol=1e-12)
    turned = flow.sample((6,), generator=seeded(*reversed(range(6))), **options)
    torch.testing.assert_close(turned.flip(0), together, rtol=1e-12, atol=1e-12)
    assert (together[0] - together[1]).abs().max() > 1e-6
    assert flow.sample((0,), generator=[], **options).shape == (0, 2)


@pytest.mark.parametrize(
    "kind", [divergence.Hutchinson(probes=2), divergence.Hutchinson("gaussian"), divergence.HutchPlusPlus(3)]
)
def test_an_estimate_with_generators_by_row_does_not_depend_on_its_batch(kind):
    flow = linear(divergence=kind).double().with_transform(bijections.Dequantise(2, levels=4))
    x = torch.tensor([[0, 3], [1, 1], [2, 0]])
    together = flow.log_prob(x, generator=seeded(5, 6, 7))
    alone = flow.log_prob(x[1:2], generator=seeded(6))
    torch.testing.assert_close(alone[0], together[1], rtol=1e-12, atol=1e-12)
