"""Random and learned lengths of time: which stretch of a field was integrated, and what was learned of it."""

import math

import pytest
import scipy.stats
import torch
from ffjord_standins import (
    DIVERGENCES,
    MODES,
    TIGHT,
    LinearField,
    nats_of,
    points,
)
from torch import nn

import cflow
from cflow import bases, divergence, fields, objectives, solvers, training
from cflow.fields.end_time import EndTime


class Clock(fields.Field):
    """``v(t, x) = exp(t) x``: the density tells over which times it was integrated."""

    def __init__(self):
        super().__init__(1)
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, t, x, context=None, *, s=None):
        t = self.check(t, x, context, s).reshape(-1, 1)
        return self.weight * torch.exp(t) * x


def clock_nats(x, length):
    """From ``1 - length`` to 1 the rates ``exp(t)`` add up to ``e - exp(1 - length)``."""
    total = math.e - torch.exp(1 - torch.as_tensor(length, dtype=torch.float64))
    return (x * torch.exp(-total)).square().sum(1) / 2 + math.log(2 * math.pi) / 2 + total


@pytest.mark.parametrize("solver", ["per sample", "joint", "continuous adjoint"])
def test_the_base_end_is_the_random_one(generator, solver):
    solver = {
        "per sample": solvers.Dopri5(**TIGHT),
        "joint": solvers.Dopri5(**TIGHT, per_sample=False, gradient=solvers.Checkpointed()),
        "continuous adjoint": MODES["continuous adjoint"],
    }[solver]
    flow = cflow.ContinuousFlow(Clock(), bases.Normal(1)).double()
    objective = objectives.FFJORD(divergence.Exact(), 1.0, 1.0, solver, steer=0.5)
    x = torch.randn(4, 1, generator=generator, dtype=torch.float64)
    batch = objective.prepare(flow.base, (x, 0.0), None, generator)
    length = float(batch.length)
    assert abs(length - 1) > 0.05
    objective.loss(flow, batch)
    assert float(objective.metrics["nats"]) == pytest.approx(float(clock_nats(x, length).mean()), abs=1e-8)
    # The energies are over the stretch walked: of the norm, the integral of exp(2 t) from 1 - T to 1.
    assert float(objective.metrics["jacobian"]) == pytest.approx((math.e**2 - math.exp(2 - 2 * length)) / 2, abs=1e-7)
    times = torch.linspace(1 - length, 1, 20001, dtype=torch.float64)
    squares = torch.exp(2 * times) * torch.exp(2 * (torch.exp(times) - math.e))
    energy = torch.trapezoid(squares, times) * x.square().mean()
    assert float(objective.metrics["kinetic"]) == pytest.approx(float(energy), rel=1e-6)
    objective.loss(flow.eval(), batch)
    assert float(objective.metrics["nats"]) == pytest.approx(float(clock_nats(x, 1.0).mean()), abs=1e-8)


def test_lengths_are_uniform_and_one_for_the_batch(generator):
    objective = objectives.FFJORD(steer=0.4)
    x = torch.zeros(3, 2, dtype=torch.float64)
    drawn = [objective.prepare(bases.Normal(2), (x, 0.0), None, generator).length for _ in range(2000)]
    assert all(each.shape == () for each in drawn)
    law = scipy.stats.uniform(0.6, 0.8)
    assert scipy.stats.kstest(torch.stack(drawn).numpy(), law.cdf).pvalue > 1e-4  # fails once in 10,000 seeds
    assert objectives.FFJORD().prepare(bases.Normal(2), (x, 0.0), None, generator).length is None


@pytest.mark.parametrize("way", ["exact", "analytic"])
@pytest.mark.parametrize("mode", ["backprop", "checkpointed", "continuous adjoint"])
def test_a_learned_length_has_the_density_of_the_field_over_it(generator, mode, way):
    inner, x = LinearField(), points(generator)
    flow = cflow.ContinuousFlow(EndTime(inner, initial=1.7), bases.Normal(2)).double()
    options = {"solver": MODES[mode], "divergence": DIVERGENCES[way]}
    length = flow.field.length.detach()
    assert float(length) == pytest.approx(1.7)
    assert torch.allclose(flow.log_prob(x, **options), -nats_of(inner, x, length), atol=1e-8, rtol=0)
    objectives.FFJORD(**options)(flow, x).mean().backward()
    logarithm = float(length.log())
    ahead, behind = (float(nats_of(inner, x, math.exp(logarithm + h)).detach().mean()) for h in (1e-5, -1e-5))
    assert float(flow.field.logarithm.grad) == pytest.approx((ahead - behind) / 2e-5, abs=1e-7)


def test_a_learned_length_moves_the_base_end_and_multiplies_with_a_random_one(generator):
    flow = cflow.ContinuousFlow(EndTime(Clock(), initial=0.6), bases.Normal(1)).double()
    x = torch.randn(4, 1, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        found = flow.log_prob(x, solver=solvers.Dopri5(**TIGHT))
    assert torch.allclose(found, -clock_nats(x, 0.6), atol=1e-8)
    objective = objectives.FFJORD(divergence.Exact(), solver=solvers.Dopri5(**TIGHT), steer=0.3)
    batch = objective.prepare(flow.base, (x, 0.0), None, generator)
    assert torch.allclose(objective.loss(flow, batch), clock_nats(x, 0.6 * batch.length), atol=1e-8)


def test_a_length_is_learned(generator):
    """Data of variance ``exp(2 T)`` with T = 0.4 of a field that cannot learn: only its length can."""
    field = LinearField(matrix=torch.eye(2).tolist())
    nn.init.zeros_(field.shift)
    field.requires_grad_(False)
    flow = cflow.ContinuousFlow(EndTime(field), bases.Normal(2)).double()
    x = math.exp(0.4) * torch.randn(2000, 2, generator=generator, dtype=torch.float64)
    objective = objectives.FFJORD(divergence.Analytic(), solver=solvers.RK4(steps=4))
    training.fit(flow, objective, x, steps=150, batch_size=200, lr=5e-2, ema=None)
    fitted = x.square().mean().log() / 2  # of maximum likelihood; what is left is the noise of the last steps
    assert float(flow.field.length.detach()) == pytest.approx(float(fitted), abs=0.03)


def test_end_time_keeps_the_shapes_of_its_field_and_is_saved(tmp_path, generator):
    field = EndTime(fields.MLP(2, hidden=(8,), classes=3), initial=0.5)
    nn.init.normal_(field.field.output.weight, generator=generator)
    with torch.no_grad():
        field.logarithm.fill_(0.3)
    assert (field.event_shape, field.context_shape, field.classes) == ((2,), (), 3)
    labels = torch.tensor([0, 2])
    assert torch.equal(field.null_context(labels), torch.tensor([3, 3]))
    flow = cflow.ContinuousFlow(field, bases.Normal(2), context_shape=())
    cflow.save(flow, tmp_path / "flow")
    again = cflow.load(tmp_path / "flow")
    x = torch.randn(2, 2, generator=generator)
    assert torch.equal(again.log_prob(x, labels), flow.log_prob(x, labels))
    assert float(again.field.length.detach()) == pytest.approx(math.exp(0.3))


@pytest.mark.parametrize("t", [torch.tensor(0.3), torch.tensor(0.3).expand(4), torch.tensor([0.3, 0.3, 0.7, 0.1])])
def test_end_time_reads_shared_and_separate_times_alike(t, generator):
    field = EndTime(Clock(), initial=2.0)
    x = torch.randn(4, 1, generator=generator, dtype=torch.float64)
    truth = 2 * torch.exp(1 - 2 * (1 - t.double().expand(4))).unsqueeze(1) * x
    assert torch.allclose(field(t.double(), x), truth)


def test_end_time_refuses_what_it_cannot_integrate():
    with pytest.raises(TypeError, match=r"EndTime\(field=Linear\): this network does not declare.*fields.Adapted"):
        EndTime(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"EndTime\(initial=0.0\): a length of time is positive"):
        EndTime(fields.MLP(2), initial=0.0)
    two = fields.MLP(2)
    two.two_times = True
    with pytest.raises(ValueError, match="a field of two times is not integrated"):
        EndTime(two)
    with pytest.raises(TypeError, match="no divergence in closed form"):
        EndTime(Clock()).value_and_divergence(torch.tensor(0.5), torch.zeros(1, 1).double())
