"""Continuous flows: the conformance suite, closed forms, costs counted in network calls."""

import math

import pytest
import torch
from torch import nn

import cflow
from cflow import bases, divergence, fields, guidance, paths, solvers
from cflow.bijections import Dequantise, Logit, Rescale
from cflow.objectives import FlowMatching
from cflow.testing import GaussianField, check_flow

TIGHT = solvers.Dopri5(rtol=1e-7, atol=1e-7)
MLP = lambda features, **options: fields.MLP(features, hidden=(16, 16), **options)
FLOWS = {
    "plain": lambda: (cflow.ContinuousFlow(MLP(2), bases.Normal(2), solver=TIGHT), None),
    "line": lambda: (cflow.ContinuousFlow(MLP(1), bases.StudentT(1, df=5.0), path=paths.Linear(), solver=TIGHT), None),
    "context": lambda: (
        cflow.ContinuousFlow(MLP(3, context=2), bases.Normal(3), path=paths.Cosine(), solver=TIGHT, context_shape=2),
        torch.tensor([0.3, -1.0]),
    ),
    "hutchinson": lambda: (
        cflow.ContinuousFlow(MLP(3), bases.Normal(3), divergence=divergence.Hutchinson(probes=2), solver=TIGHT),
        None,
    ),
    "closed form": lambda: (
        cflow.ContinuousFlow(
            fields.ConcatSquash(1, (8, 8)), bases.Normal(1), divergence=divergence.Analytic(), solver=TIGHT
        ),
        None,
    ),
    "potential": lambda: (
        cflow.ContinuousFlow(
            fields.Potential(3, 8, context=2),
            bases.Normal(3),
            divergence=divergence.Analytic(),
            solver=TIGHT,
            context_shape=2,
        ),
        torch.tensor([0.3, -1.0]),
    ),
    "sketched": lambda: (
        cflow.ContinuousFlow(
            fields.ConcatSquash(5, (8,)), bases.Normal(5), divergence=divergence.XTrace(4), solver=solvers.RK4(steps=8)
        ),
        None,
    ),
    "logit": lambda: (cflow.ContinuousFlow(MLP(2), bases.Normal(2), solver=TIGHT).with_transform(Logit(2)), None),
    "images": lambda: (
        cflow.ContinuousFlow(
            fields.UNet(1, 8, width=8, blocks=1, classes=3),
            bases.Normal((1, 8, 8)),
            path=paths.VariancePreserving("noise"),
            solver=solvers.RK4(steps=8),
            divergence=divergence.Hutchinson(),
            context_shape=(),
        ).with_transform(Dequantise((1, 8, 8), 17), Rescale((1, 8, 8))),
        torch.tensor(1),
    ),
}


@pytest.mark.parametrize("name", FLOWS)
def test_every_flow_conforms(name):
    flow, context = FLOWS[name]()
    check_flow(flow, context, density=name != "logit")


class LinearField(nn.Module):
    """dx/dt = A x: the flow map is the matrix exponential, the log-determinant the trace."""

    def __init__(self, dimension=3):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.matrix = nn.Parameter(torch.randn(dimension, dimension, generator=generator, dtype=torch.float64))
        self.calls = 0

    def forward(self, t, x, context=None):
        self.calls += 1
        return x @ self.matrix.T


def test_a_linear_field_has_the_matrix_exponentials_density(generator):
    field = LinearField()
    flow = cflow.ContinuousFlow(field, bases.Normal(3), solver=solvers.Dopri5(rtol=1e-10, atol=1e-10)).double()
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    carry = torch.linalg.matrix_exp(field.matrix.detach())
    law = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=torch.float64), carry @ carry.T)
    assert torch.allclose(flow.log_prob(x), law.log_prob(x), atol=1e-7)
    part = flow.transport(x, 0.2, 0.7, ladj=True)
    assert torch.allclose(part.y, x @ torch.linalg.matrix_exp(0.5 * field.matrix).T, atol=1e-8)
    assert torch.allclose(part.quadratures["ladj"], 0.5 * field.matrix.trace(), atol=1e-8)
    (log_prob,) = torch.autograd.grad(flow.log_prob(x).sum(), field.matrix)
    exact, = torch.autograd.grad(
        torch.distributions.MultivariateNormal(
            torch.zeros(3, dtype=torch.float64), (m := torch.linalg.matrix_exp(field.matrix)) @ m.T
        ).log_prob(x).sum(), field.matrix
    )  # fmt: skip
    assert torch.allclose(log_prob, exact, atol=1e-5)


def test_quadratures_are_the_integrals_they_name(generator):
    path = paths.Linear()
    flow = cflow.ContinuousFlow(GaussianField(path, 2, 0.7, 0.5), bases.Normal(2), path=path, solver=TIGHT).double()
    x0 = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    found = flow.transport(x0, 0.0, 1.0, quadratures=("kinetic", "jacobian")).quadratures
    times = torch.linspace(0, 1, 2001, dtype=torch.float64)
    speed, slope = [], []
    for t in times:
        x, _ = flow.field.carry(x0, 0.0, float(t))
        x = x.detach().requires_grad_()
        v = flow.field(t, x)
        speed.append(v.square().sum(1).detach())
        slope.append(2 * torch.autograd.grad(v.sum(), x)[0][:, 0] ** 2)
    assert torch.allclose(found["kinetic"], torch.trapezoid(torch.stack(speed), times, dim=0), atol=1e-5)
    assert torch.allclose(found["jacobian"], torch.trapezoid(torch.stack(slope), times, dim=0), atol=1e-5)
    back = flow.transport(flow.field.carry(x0, 0.0, 1.0)[0], 1.0, 0.0, quadratures=("kinetic",)).quadratures
    assert torch.allclose(back["kinetic"], found["kinetic"], atol=1e-5)


def test_the_standard_error_of_an_estimated_density_is_calibrated(generator):
    field = LinearField()
    exact = cflow.ContinuousFlow(field, bases.Normal(3), solver=TIGHT).double()
    rough = cflow.ContinuousFlow(
        field, bases.Normal(3), solver=TIGHT, divergence=divergence.Hutchinson(probes=16)
    ).double()
    assert (exact.likelihood, rough.likelihood) == ("exact", "estimate")
    x = torch.randn(400, 3, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        value, error = rough.log_prob_estimate(x, generator=generator)
        gap = value - exact.log_prob(x)
    # 400 gaps of a nearly normal law: their spread is known to 3.5 %; five times that is never reached by chance.
    assert abs(float(gap.square().mean().sqrt() / error.square().mean().sqrt()) - 1) < 0.18
    assert abs(float(gap.mean())) < 5 * float(gap.std()) / 20
    assert (exact.log_prob_estimate(x)[1] == 0).all()


def test_network_calls_are_as_few_as_promised():
    field = LinearField()
    flow = cflow.ContinuousFlow(field, bases.Normal(3), path=paths.Linear()).double()

    def count(call):
        field.calls = 0
        call()
        return field.calls

    euler = solvers.Euler(steps=10)
    assert count(lambda: flow.sample((4,), solver=euler)) == 10
    assert count(lambda: flow.sample((4,), solver=solvers.Heun(steps=10))) == 20
    assert count(lambda: flow.sample_and_log_prob((4,), solver=euler)) == 10
    assert count(lambda: flow.rsample_and_log_prob((4,), solver=euler)) == 10
    assert count(lambda: flow.log_prob(torch.zeros(4, 3), solver=euler)) == 10
    x1 = cflow.ContinuousFlow(field, bases.Normal(3), path=paths.Linear("x1")).double()
    assert count(lambda: x1.sample((4,), solver=euler)) == 10  # the last step is the closed form
    assert flow.transport(torch.zeros(4, 3), 0.0, 1.0, solver=euler).stats.nfe == 10
    assert x1.transport(torch.zeros(4, 3), 0.0, 1.0, solver=euler).stats.nfe == 10


def test_trajectories_start_and_end_where_they_should(generator):
    path = paths.Linear("x1")
    flow = cflow.ContinuousFlow(GaussianField(path, 2, 0.7, 0.5), bases.Normal(2), path=path, solver=TIGHT).double()
    x0 = torch.randn(3, 5, 2, generator=generator, dtype=torch.float64)
    states = flow.trajectory(x0, times=5)
    assert states.shape == (5, 3, 5, 2)
    assert torch.equal(states[0], x0)
    for i, t in enumerate((0.0, 0.25, 0.5, 0.75, 1.0)):
        exact = flow.field.carry(x0.reshape(15, 2), 0.0, t)[0]
        assert torch.allclose(states[i].reshape(15, 2), exact, atol=1e-4)
    back = flow.trajectory(states[-1], times=(1.0, 0.5, 0.0))
    assert torch.allclose(back[-1], x0, atol=1e-3)
    scaled = flow.with_transform(Rescale(2, 0.0, 10.0))
    assert torch.allclose(scaled.trajectory(x0, times=2)[-1], (states[-1] + 1) * 5, atol=1e-4)


def test_the_score_is_the_gradient_of_the_log_density(generator):
    path = paths.Cosine("x1")
    field = GaussianField(path, 2, 0.7, 0.5)
    flow = cflow.ContinuousFlow(field, bases.Normal(2), path=path).double()
    x = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    t = torch.tensor(0.6, dtype=torch.float64)
    variance = path.alpha(t) ** 2 * 0.25 + path.sigma(t) ** 2
    assert torch.allclose(flow.score(0.6, x), -(x - path.alpha(t) * 0.7) / variance, atol=1e-10)
    with pytest.raises(ValueError, match="well conditioned in"):
        flow.score(1.0, x)


def test_half_precision_networks_keep_states_and_densities_in_float32():
    flow = cflow.ContinuousFlow(fields.MLP(2), bases.Normal(2), path=paths.Linear(), solver=solvers.Heun(steps=4))
    flow = flow.to(torch.bfloat16)
    x, logp = flow.sample_and_log_prob((5,))
    assert x.dtype == logp.dtype == torch.float32
    assert flow.log_prob(x.double()).dtype == torch.float32


def test_guidance_changes_samples_and_null_contexts_are_asked_for():
    field = MLP(2, classes=3)
    nn.init.normal_(field.output.weight)
    flow = cflow.ContinuousFlow(field, bases.Normal(2), path=paths.Linear(), context_shape=())
    draw = lambda label, **options: flow.sample(
        (4,), label, solver=solvers.Heun(steps=8), generator=torch.Generator().manual_seed(0), **options
    )
    label = torch.tensor(1)
    assert torch.allclose(draw(label, guidance=guidance.ClassifierFree(1.0)), draw(label))
    null = field.null_context(label)
    assert torch.allclose(draw(label, guidance=guidance.ClassifierFree(0.0)), draw(null), atol=1e-6)
    assert not torch.allclose(draw(label, guidance=guidance.ClassifierFree(3.0)), draw(label), atol=1e-3)


def test_log_prob_works_under_every_grad_mode():
    flow = cflow.ContinuousFlow(MLP(2), bases.Normal(2), solver=solvers.RK4(steps=4))
    x = torch.randn(5, 2)
    free = flow.log_prob(x)
    assert free.requires_grad
    with torch.no_grad():
        assert torch.allclose(flow.log_prob(x), free)
        assert not flow.log_prob(x).requires_grad
    with torch.inference_mode():
        assert torch.allclose(flow.log_prob(x), free)
    x.requires_grad_()
    (score,) = torch.autograd.grad(flow.log_prob(x).sum(), x)
    assert torch.allclose(score, -x, atol=1e-5)  # an untrained field stands still


def test_a_failed_sample_is_reported_and_the_others_are_kept():
    class Wall(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, t, x, context=None):
            return torch.where(x > 1, math.nan, self.scale)

    flow = cflow.ContinuousFlow(Wall(), bases.Normal(1))
    solution = flow.transport(torch.tensor([[-5.0], [0.5], [-3.0]]), 0.0, 1.0)
    assert solution.status.tolist()[0] == solution.status.tolist()[2] == solvers.Status.SUCCESS
    assert solution.status[1] == solvers.Status.NON_FINITE
    assert torch.allclose(solution.y[[0, 2]], torch.tensor([[-4.0], [-2.0]]))
    with pytest.raises(FloatingPointError, match="1 of 3 samples .* sample 1 ended with NON_FINITE"):
        flow.decode(torch.tensor([[-5.0], [0.5], [-3.0]]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cflow.ContinuousFlow(MLP(2), bases.Normal(3)), "give both the same shape"),
        (lambda: cflow.ContinuousFlow(MLP(2, classes=3), bases.Normal(2), context_shape=2), r"pass context_shape=\(\)"),
        (lambda: cflow.ContinuousFlow(MLP(2), bases.Normal(2), context_shape=()), "pass context_shape=None"),
        (lambda: cflow.ContinuousFlow(MLP(2), bases.Uniform(2), path=paths.Linear("score")), "standard normal"),
        (lambda: cflow.ContinuousFlow(MLP(2), bases.Normal(2), manifold="sphere"), "not a manifold"),
        (lambda: cflow.ContinuousFlow(bases.Normal(2), MLP(2)), "pass a distribution such as"),
        (lambda: cflow.ContinuousFlow(bases.Normal(2), bases.Normal(2)), "pass first the network"),
        (lambda: cflow.ContinuousFlow(MLP(2), bases.Normal(2), path="linear"), "paths.Linear"),
        (lambda: FLOWS["plain"]()[0].sample((2,), solver="heun"), "an object, not a name"),
        (lambda: FLOWS["plain"]()[0].sample((2,), solver=solvers.Heun), "is not a solver"),
        (lambda: FLOWS["plain"]()[0].sample((2,), guidance=2.0), "not a guidance"),
        (lambda: FLOWS["plain"]()[0].log_prob(torch.zeros(2), divergence="exact"), "is not a divergence; pass"),
        (lambda: FLOWS["images"]()[0].sample((), torch.tensor(7)), "pass 0 to 2, or 3 for no condition"),
        (lambda: FLOWS["plain"]()[0].transport(torch.zeros(2), 0, 1, quadratures=("energy",)), "choose from kinetic"),
        (lambda: FLOWS["plain"]()[0].transport(torch.zeros(2), 0, 1, quadratures=("ladj_probes",)), "Hutchinson"),
        (lambda: FLOWS["plain"]()[0].transport(torch.zeros(2), 0.0, 1.5), r"outside \[0, 1\]"),
        (lambda: FLOWS["plain"]()[0].with_path(paths.Linear()), "has no path"),
        (lambda: FLOWS["plain"]()[0].score(0.5, torch.zeros(2)), "has no path"),
        (lambda: FLOWS["line"]()[0].score(0.5, torch.zeros(1)), "needs bases.Normal"),
        (lambda: FLOWS["plain"]()[0].trajectory(torch.zeros(2), times=1), "at least two times"),
        (lambda: FLOWS["plain"]()[0].encode(torch.full((2,), math.nan)), "flow.transport returns the status"),
    ],
)
def test_bad_use_says_what_to_do(call, message):
    with pytest.raises((ValueError, TypeError, FloatingPointError), match=message):
        call()


@pytest.mark.parametrize("predict", ["velocity", "x1", "noise", "score"])
def test_velocities_are_finite_at_both_ends_and_no_time_changes_nothing(predict):
    path = paths.Linear(predict)
    flow = cflow.ContinuousFlow(GaussianField(path, 2, 0.7, 0.5), bases.Normal(2), path=path).double()
    x = torch.randn(4, 2, dtype=torch.float64)
    for t, slope in ((0.0, -1.0), (1.0, 1.0)):
        # The closed form at the ends: dx/dt of m t + sqrt(t^2 s^2 + (1 - t)^2) z.
        spread = 1.0 if t == 0 else 0.5
        exact = 0.7 + (x - 0.7 * t) / spread * (slope * (0.25 if t == 1 else 1.0) / spread)
        assert torch.allclose(flow.velocity(t, x), exact, atol=0.02)
    for t in (0.0, 0.5, 1.0):
        assert torch.equal(flow.transport(x, t, t, ladj=True).y, x)


@pytest.mark.parametrize("solver", [solvers.Heun(steps=10), solvers.RK4(steps=10), solvers.Midpoint(steps=10)])
@pytest.mark.parametrize("schedule", [paths.Linear, paths.Cosine, paths.VariancePreserving])
def test_an_imperfect_x1_network_is_not_amplified_at_the_datas_end(schedule, solver, generator):
    """A last stage just short of t = 1 would multiply the network's error by the step over sigma, here by fifty."""
    path = schedule("x1")
    flow = cflow.ContinuousFlow(GaussianField(path, 2, 0.0, 0.5), bases.Normal(2), path=path).double()
    with torch.no_grad():
        flow.field.scale.mul_(0.95)
    x = flow.sample((2000,), solver=solver, generator=generator)
    fine = flow.sample((2000,), solver=solvers.Euler(steps=400), generator=torch.Generator().manual_seed(0))
    assert abs(float(x.std() / fine.std()) - 1) < 0.25
    assert flow.transport(x[:3], 0.0, 1.0, solver=solvers.Euler(steps=10)).stats.nfe == 10


def test_the_log_determinant_of_an_estimate_is_held_to_the_tolerance():
    class Wave(nn.Module):
        """A trace that oscillates while the state, at zero, stands still."""

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(20.0))

        def forward(self, t, x, context=None):
            return x * self.scale * torch.sin(20 * t)[:, None] ** 2

    flow = cflow.ContinuousFlow(Wave(), bases.Normal(2), divergence=divergence.Hutchinson(probes=2)).double()
    with torch.no_grad():
        value, _ = flow.log_prob_estimate(torch.zeros(1, 2, dtype=torch.float64))
    exact = -math.log(2 * math.pi) - 2 * 20 * (0.5 - math.sin(40) / 80)
    assert abs(float(value) - exact) < 1e-3


def test_an_empty_batch_has_an_empty_estimate():
    flow, _ = FLOWS["hutchinson"]()
    value, error = flow.log_prob_estimate(torch.zeros(0, 3))
    assert value.shape == error.shape == (0,)


def test_guiding_a_flow_by_itself_changes_nothing(generator):
    path = paths.Linear("x1")
    flow = cflow.ContinuousFlow(GaussianField(path, 2, 1.0, 0.5), bases.Normal(2), path=path).double()
    x0 = flow.base.sample((5,), generator=generator)
    same = flow.transport(x0, 0.0, 1.0, guidance=guidance.AutoGuidance(flow, 2.0)).y
    assert torch.allclose(same, flow.transport(x0, 0.0, 1.0).y, atol=1e-5)
    with pytest.raises(ValueError, match="pass the weak flow itself"):
        flow.transport(x0, 0.0, 1.0, guidance=guidance.AutoGuidance(flow.field, 2.0))


def test_a_failure_in_the_closed_form_step_has_a_status():
    class Cliff(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, t, x, context=None):
            return torch.where((t[:, None] > 0.95) & (x > 0), math.nan, self.scale * x.sign())

    flow = cflow.ContinuousFlow(Cliff(), bases.Normal(1), path=paths.Linear("x1"))
    solution = flow.transport(torch.tensor([[-9.0], [9.0]]), 0.0, 1.0, solver=solvers.Euler(steps=40))
    assert solution.status.tolist() == [solvers.Status.SUCCESS, solvers.Status.NON_FINITE]
    with pytest.raises(FloatingPointError, match="NON_FINITE"):
        flow.sample((50,), solver=solvers.Euler(steps=40))


def test_flows_of_one_path_have_records_of_their_own():
    path = paths.Linear()
    one, two = (cflow.ContinuousFlow(MLP(2), bases.Normal(2), path=path) for _ in range(2))
    one.record(FlowMatching())
    assert one.trained_by == (FlowMatching().entry(),)
    assert two.trained_by == ()


def test_paths_with_other_ends_are_not_exchanged():
    flow = cflow.ContinuousFlow(MLP(2), bases.Normal(2), path=paths.Linear(sigma_min=0.3))
    with pytest.raises(ValueError, match="sigma differs by 0.3 at an end"):
        flow.with_path(paths.Linear())
    evaluated = cflow.ContinuousFlow(MLP(2), bases.Normal(2), path=paths.Linear()).eval().with_path(paths.Cosine())
    assert not evaluated.training


def test_contexts_of_several_parts_are_dropped_and_guided(generator):
    from cflow import objectives

    class Parts(nn.Module):
        """Reads a label and a vector."""

        event_shape = torch.Size([2])
        context_shape = {"label": torch.Size([]), "vector": torch.Size([3])}

        def __init__(self):
            super().__init__()
            self.embed, self.net = nn.Embedding(5, 4), nn.Linear(10, 2)

        def null_context(self, context):
            return {"label": torch.full_like(context["label"], 4), "vector": torch.zeros_like(context["vector"])}

        def forward(self, t, x, context=None):
            parts = [x, t.expand(len(x))[:, None], self.embed(context["label"]), context["vector"]]
            return self.net(torch.cat(parts, 1))

    flow = cflow.ContinuousFlow(Parts(), bases.Normal(2), path=paths.Linear(), context_shape={"label": (), "vector": 3})
    context = {"label": torch.arange(4), "vector": torch.randn(4, 3)}
    loss = objectives.FlowMatching(condition_dropout=0.5)(flow, torch.randn(4, 2), context, generator=generator)
    assert loss.shape == (4,)
    x = flow.sample((6,), context, solver=solvers.Euler(steps=2), guidance=guidance.ClassifierFree(2.0))
    assert x.shape == (6, 4, 2)
    assert flow(context).expand((3, 4)).sample().shape == (3, 4, 2)


@pytest.mark.parametrize("predict", ["noise", "score"])
@pytest.mark.parametrize("solver", [solvers.Heun(steps=10), solvers.RK4(steps=10), solvers.Euler(steps=20)])
def test_an_imperfect_noise_network_is_not_amplified_at_the_bases_end(predict, solver, generator):
    path = paths.Linear(predict)
    flow = cflow.ContinuousFlow(GaussianField(path, 2, 0.0, 0.5), bases.Normal(2), path=path).double()
    with torch.no_grad():
        flow.field.scale.mul_(0.97)
    x = flow.sample((2000,), solver=solver, generator=generator)
    fine = flow.sample((2000,), generator=torch.Generator().manual_seed(0))
    assert abs(float(x.std() / fine.std()) - 1) < 0.2


def test_grids_of_few_steps_and_output_times_keep_the_closed_form(generator):
    x0 = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    for predict in ("x1", "noise", "score"):
        path = paths.Cosine(predict)
        flow = cflow.ContinuousFlow(GaussianField(path, 2, 0.7, 0.5), bases.Normal(2), path=path).double()
        for steps in (1, 2, 3):
            assert flow.transport(x0, 0.0, 1.0, solver=solvers.Heun(steps=steps)).y.isfinite().all()
        at = [0.0, 0.3, 0.97, 1.0]
        states = flow.transport(x0, 0.0, 1.0, solver=solvers.RK4(steps=50), at=at).trajectory
        for t, state in zip(at, states):
            assert (state - flow.field.carry(x0, 0.0, t)[0]).abs().max() < 0.02


@pytest.mark.parametrize("transform", [torch.func.vmap, torch.func.grad, torch.func.jacrev])
def test_a_solve_under_a_transform_of_torch_names_it(transform):
    flow = FLOWS["plain"]()[0]
    function = (lambda x: flow.log_prob(x).sum()) if transform is torch.func.grad else flow.log_prob
    with pytest.raises(RuntimeError, match=r"under torch.func.*pass the whole batch at once"):
        transform(function)(torch.zeros(3, 2))
