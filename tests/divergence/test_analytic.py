"""The closed form through paths, guidance and solves: as exact as the whole Jacobian, in value and gradient."""

import pytest
import torch
from torch import nn

import cflow
from cflow import bases, paths
from cflow.divergence import Analytic, Exact, Hutchinson
from cflow.fields import MLP, Adapted, ConcatSquash, Potential, UNet
from cflow.guidance import AutoGuidance, CFGZeroStar, ClassifierFree
from cflow.registry import configuration, lookup
from cflow.solvers import RK4, Backprop, Checkpointed, ContinuousAdjoint, Dopri5, TorchDiffEq

FIELDS = {
    "mlp": lambda **options: MLP(2, (8, 8), **options),
    "concat squash": lambda **options: ConcatSquash(2, (8, 8), **options),
    "concat squash of three": lambda **options: ConcatSquash(2, (8, 6, 8), activation="softplus", **options),
    "potential": lambda **options: Potential(2, 8, **options),
}


def filled(field, std=0.25, seed=5):
    generator = torch.Generator().manual_seed(seed)
    for parameter in field.parameters():
        nn.init.normal_(parameter, std=std, generator=generator)
    return field


def conditional(name, path=None):
    return cflow.ContinuousFlow(filled(FIELDS[name](context=3)), bases.Normal(2), path=path, context_shape=3).double()


def inputs(generator, count=5):
    return (torch.randn(count, size, generator=generator, dtype=torch.float64).requires_grad_() for size in (2, 3))


@pytest.mark.parametrize(
    "solver",
    [
        RK4(4, gradient=Backprop()),
        RK4(4, gradient=Checkpointed()),
        Dopri5(1e-4, gradient=Checkpointed()),
        Dopri5(1e-4, per_sample=False, gradient=Checkpointed()),
        TorchDiffEq("rk4", gradient=ContinuousAdjoint(), options={"step_size": 0.25}),
    ],
    ids=["backprop", "checkpointed", "per sample", "joint", "adjoint"],
)
@pytest.mark.parametrize("name", FIELDS)
def test_densities_and_their_gradients_are_those_of_the_exact_divergence(name, solver, generator):
    flow = conditional(name)
    x, context = inputs(generator)
    wanted = [x, context, *flow.field.parameters()]
    found = []
    for divergence in (Analytic(), Exact(chunk=1)):
        density = flow.log_prob(x, context, solver=solver, divergence=divergence)
        gradients = torch.autograd.grad(density.sum(), wanted, allow_unused=True, materialize_grads=True)
        found.append((density, gradients))
    # Rounding moves the steps of an adaptive solver a little.
    tolerance = {"rtol": 1e-7, "atol": 1e-8} if isinstance(solver, Dopri5) else {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(*(density for density, _ in found), **tolerance)
    torch.testing.assert_close(*(gradients for _, gradients in found), **tolerance)
    assert all(bool(each.any()) for each in found[0][1][:2])


@pytest.mark.parametrize("predict", ["velocity", "x1", "noise", "score"])
@pytest.mark.parametrize("schedule", [paths.Linear, paths.Cosine])
def test_velocities_of_every_prediction_have_their_trace(predict, schedule, generator):
    flow = conditional("concat squash", schedule(predict))
    x, context = inputs(generator)
    low, high = flow.interval
    velocity = flow.velocity_field()
    for t in (torch.rand(5, generator=generator).double().clamp(low, high), torch.tensor(high).double()):
        v, divergence, _ = Analytic()(velocity, t, x, None, context)
        expected_v, expected, _ = Exact(chunk=1)(velocity, t, x, None, context)
        torch.testing.assert_close(v, expected_v)
        torch.testing.assert_close(divergence, expected, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        found, expected = (flow.log_prob(x, context, divergence=each) for each in (Analytic(), Exact()))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.7)])
def test_guided_velocities_have_their_trace(scale, interval, generator):
    flow = conditional("mlp", paths.Linear("x1"))
    weak = cflow.ContinuousFlow(filled(MLP(2, (4,)), seed=7), bases.Normal(2), path=paths.Linear()).double()
    x, context = inputs(generator)
    for guidance in (ClassifierFree(scale, interval), AutoGuidance(weak, scale)):
        velocity = flow.velocity_field(guidance)
        for t in (torch.linspace(0.1, 0.9, 5).double(), torch.tensor(0.2).double(), torch.tensor(0.5).double()):
            v, divergence, _ = Analytic()(velocity, t, x, None, context)
            expected_v, expected, _ = Exact(chunk=1)(velocity, t, x, None, context)
            torch.testing.assert_close(v, expected_v)
            torch.testing.assert_close(divergence, expected, rtol=1e-10, atol=1e-10)


def test_nothing_is_differentiated_and_no_graph_is_kept(monkeypatch, generator):
    def refused(*arguments, **options):
        raise AssertionError("a derivative was taken")

    monkeypatch.setattr(torch.autograd, "grad", refused)
    flow = cflow.ContinuousFlow(
        filled(MLP(2, (8, 8, 8))), bases.Normal(2), divergence=Analytic(), solver=RK4(2)
    )  # fmt: skip
    calls = []
    flow.field.register_forward_pre_hook(lambda *arguments: calls.append("forward"))
    flow.field.output.register_forward_pre_hook(lambda *arguments: calls.append("layer"))
    x = torch.randn(4, 2, generator=generator)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert not flow.log_prob(x).requires_grad
    assert calls == 16 * ["layer"]  # one evaluation per stage, by the method alone


def test_a_field_of_ones_own_may_have_a_closed_form(generator):
    class Rotation(nn.Module):
        event_shape = torch.Size([2])

        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(0.7))

        def forward(self, t, x, context=None):
            return self.rate * x

        def value_and_divergence(self, t, x, context=None):
            return self.rate * x, (2 * self.rate).expand(len(x))

    flow = cflow.ContinuousFlow(Rotation(), bases.Normal(2), divergence=Analytic())
    x = torch.randn(5, 2, generator=generator)
    z, ladj = flow.encode(x)
    torch.testing.assert_close(z, x * torch.exp(torch.tensor(-0.7)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ladj, torch.full((5,), -1.4), rtol=1e-4, atol=1e-4)


def test_half_precision_flows_keep_the_trace_in_single_precision(generator):
    flow = cflow.ContinuousFlow(filled(MLP(2, (8, 8))), bases.Normal(2), divergence=Analytic(), solver=RK4(2))
    x = torch.randn(5, 2, generator=generator)
    with torch.no_grad():
        exact, rough = flow.log_prob(x), flow.to(torch.bfloat16).log_prob(x)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.05)


def test_the_option_is_exact_registered_and_saved(tmp_path):
    flow = cflow.ContinuousFlow(filled(ConcatSquash(2, (8,))), bases.Normal(2), divergence=Analytic(), solver=RK4(2))
    assert flow.likelihood == "exact"
    assert lookup("divergence.Analytic") is Analytic
    assert configuration(Analytic()) == {}
    assert Analytic().begin(torch.zeros(2, 2)) is None
    cflow.save(flow, tmp_path / "flow")
    loaded, x = cflow.load(tmp_path / "flow"), torch.ones(3, 2)
    assert loaded.divergence == Analytic()
    assert torch.equal(loaded.log_prob(x), flow.log_prob(x))
    value, error = flow.log_prob_estimate(x)
    assert torch.equal(value, flow.log_prob(x))
    assert not error.any()


def test_frobenius_norms_are_refused():
    flow = cflow.ContinuousFlow(MLP(2, (8,)), bases.Normal(2), divergence=Analytic(), solver=RK4(2))
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"'jacobian' is .* norm, .* does not compute; pass divergence=Exact\(\)"):
        flow.transport(x, 1.0, 0.0, ladj=True, quadratures=("jacobian",))
    with pytest.raises(ValueError, match="'ladj_probes' needs a divergence with probes"):
        flow.transport(x, 1.0, 0.0, quadratures=("ladj_probes",))
    assert set(flow.transport(x, 1.0, 0.0, ladj=True, quadratures=("kinetic",)).quadratures) == {"ladj", "kinetic"}


def foreign(network, t, x, context):
    return network(x)


class Doubled(MLP):
    def forward(self, t, x, context=None, *, s=None):
        return 2 * super().forward(t, x, context, s=s)


BRIDGE = {"path": paths.BrownianBridge()}
LABELS = {"context_shape": ()}


@pytest.mark.parametrize(
    ("build", "guidance", "named"),
    [
        (
            lambda: cflow.ContinuousFlow(UNet(1, 4, width=8, multipliers=(1,), heads=2), bases.Normal((1, 4, 4))),
            None,
            "UNet",
        ),
        (
            lambda: cflow.ContinuousFlow(Adapted(nn.Linear(2, 2), foreign, event_shape=2), bases.Normal(2)),
            None,
            "Adapted",
        ),
        (lambda: cflow.ContinuousFlow(Doubled(2), bases.Normal(2)), None, "Doubled"),
        (
            lambda: cflow.ContinuousFlow(MLP(2, outputs=2), bases.Normal(2), **BRIDGE),
            None,
            "Bridge.*weighted sum of one prediction",
        ),
        (
            lambda: cflow.ContinuousFlow(MLP(2), bases.Normal(2), path=paths.Linear()).with_path(paths.Cosine()),
            None,
            "Rescheduled",
        ),
        (
            lambda: cflow.ContinuousFlow(MLP(2, classes=3), bases.Normal(2), **LABELS),
            CFGZeroStar(2.0),
            "CFGZeroStar.*not a weighted sum",
        ),
        (
            lambda: cflow.ContinuousFlow(MLP(2), bases.Normal(2)),
            AutoGuidance(Adapted(nn.Linear(2, 2), foreign, event_shape=2), 2.0),
            "Adapted",
        ),
    ],
)
def test_what_has_no_closed_form_is_refused(build, guidance, named):
    flow = build()
    context = None if flow.context_shape is None else torch.tensor(1)
    x = torch.zeros(3, *flow.event_shape)
    with pytest.raises(TypeError, match=rf"Analytic: .*{named}.*Exact\(\).*Hutchinson\(\)"):
        flow.log_prob(x, context, divergence=Analytic(), solver=RK4(2), guidance=guidance)
    assert flow.log_prob(x, context, divergence=Hutchinson(), solver=RK4(2), guidance=guidance).shape == (3,)


def test_a_function_is_named_in_its_refusal():
    def swirl(t, x):
        return x

    with pytest.raises(TypeError, match="swirl has no divergence in closed form"):
        Analytic()(swirl, torch.zeros(1), torch.zeros(1, 2), None)
