"""Consistency flow matching: velocities that lead to one end."""

import pytest
import torch

import cflow
from cflow import bases, fields, objectives, paths, solvers, training
from cflow.couplings import Paired, paired
from cflow.fields import Field


class Straight(Field):
    """The velocity of the flow whose pairs are ``x1 = ratio * x0`` on straight lines: constant along each of them."""

    def __init__(self, ratio, wrong=0.0):
        super().__init__((2,))
        self.ratio, self.wrong = ratio, torch.nn.Parameter(torch.tensor(wrong))

    def forward(self, t, x, context=None, *, s=None):
        t = self.check(t, x, context, s)
        t = t[:, None] if t.dim() else t
        return (self.ratio - 1) * x / (1 - t + t * self.ratio) * (1 + self.wrong)


@pytest.mark.parametrize("segments", [1, 4])
def test_a_straight_flow_has_no_error(segments, float64, generator):
    x0 = torch.randn(200, 2, generator=generator)
    data = paired(x0, 3.0 * x0)
    objective = objectives.ConsistencyFlowMatching(Paired(), segments=segments, alpha=0.5)
    flow = lambda wrong: cflow.ContinuousFlow(Straight(3.0, wrong), bases.Normal(2), path=paths.Linear())
    assert objective(flow(0.0), data, generator=generator).max() < 1e-20
    assert objective(flow(0.1), data, generator=generator).mean() > 1e-6


def test_only_one_side_learns(float64, generator):
    """The gradient is that of the left side, whatever the right side's weights would say."""
    x0 = torch.randn(50, 2, generator=generator)
    flow = cflow.ContinuousFlow(Straight(3.0, 0.1), bases.Normal(2), path=paths.Linear())
    objective = objectives.ConsistencyFlowMatching(Paired(), delta=0.05, alpha=0.0)
    draw = lambda: torch.Generator().manual_seed(3)
    loss = objective(flow, paired(x0, 3.0 * x0), generator=draw())
    t = objective.prepare(flow.base, paired(x0, 3.0 * x0), None, draw()).t[:, None]
    r = (t + 0.05).clamp(max=1.0)
    line = lambda t: (1 - t + 3.0 * t) * x0
    end = lambda t: line(t) + (1 - t) * flow.predict(t[:, 0], line(t))
    expected = (end(t) - end(r).detach()).square().mean(1)
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(each.mean(), flow.field.wrong)[0] for each in (loss, expected)]
    torch.testing.assert_close(*gradients)


def test_one_step_after_training(generator):
    """Two points from a normal: a step of what flow matching learns ends in the middle, of this nearer to a point."""
    x = torch.randint(2, (2000, 1), generator=generator) * 2.0 - 1
    far = {}
    for objective in (objectives.FlowMatching(), objectives.ConsistencyFlowMatching(delta=0.05)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            flow = cflow.ContinuousFlow(fields.MLP(1, hidden=(64, 64)), bases.Normal(1), path=paths.Linear())
        training.fit(flow, objective, x, steps=400, batch_size=256, lr=5e-3, seed=0, ema=None)
        ends = flow.eval().sample((1000,), solver=solvers.Euler(steps=1), generator=torch.Generator().manual_seed(0))
        far[type(objective).__name__] = float((ends.abs() - 1).abs().mean())
    assert far["ConsistencyFlowMatching"] < 0.7 * far["FlowMatching"]


def test_what_cannot_be_is_refused(generator):
    for wrong in ({"segments": 0}, {"delta": 0.0}, {"segments": 4, "delta": 0.3}, {"alpha": -1.0}):
        with pytest.raises(ValueError, match="segments >= 1"):
            objectives.ConsistencyFlowMatching(**wrong)
    flow = cflow.ContinuousFlow(fields.MLP(2), bases.Normal(2), path=paths.Linear("x1"))
    with pytest.raises(ValueError, match="does not predict the velocity"):
        objectives.ConsistencyFlowMatching()(flow, torch.randn(4, 2, generator=generator))


def test_what_has_learned_steps_has_no_density(generator):
    flow = cflow.ContinuousFlow(fields.MLP(2), bases.Normal(2), path=paths.Linear())
    x = torch.randn(8, 2, generator=generator)
    flow.record(objectives.FlowMatching())
    assert flow.likelihood == "exact"
    flow.record(objectives.ConsistencyFlowMatching())
    assert flow.likelihood == "none"
    with pytest.raises(ValueError, match=r"few steps \(objectives.ConsistencyFlowMatching\) has no density"):
        flow.log_prob(x)
    for ask in (flow.encode, flow.decode, lambda x: flow.transport(x, 0.0, 1.0, ladj=True)):
        with pytest.raises(ValueError, match="few steps .* has no density"):
            ask(x)
    assert flow.transport(x, 0.0, 1.0, solver=solvers.Euler(steps=1)).y.shape == x.shape
    with pytest.raises(ValueError, match=r"few steps .*flow.record\(objective\)"):
        objectives.FFJORD()(flow, x)
    flow.record(objectives.FlowMatching())
    assert flow.likelihood == "exact"
