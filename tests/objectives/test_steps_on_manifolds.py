"""Whole steps on manifolds: the identities that train them, their densities, and steps that are known."""

import pytest
import torch

from cflow import ContinuousFlow, bases, fields, manifolds, objectives, paths, solvers, training
from cflow.fields import Field

SPHERE = manifolds.Sphere(2)
MANIFOLDS = [SPHERE]
LONG = {objectives.Shortcut: {"steps": 2**20}}  # no step of the tests is made of two velocities
METHODS = [objectives.MeanFlow, objectives.Shortcut, objectives.LagrangianSelfDistillation]


class Integrated(Field):
    """The average velocity of a smooth field that depends on time, integrated with an error of some 1e-11."""

    two_times = True

    def __init__(self, manifold, wrong=0.0):
        super().__init__(manifold.event_shape)
        self.manifold = manifold
        size = manifold.event_shape.numel()
        whole = torch.randint(-1, 2, (size, size), generator=torch.Generator().manual_seed(1)).double()
        self.register_buffer("whole", whole)  # whole numbers: the field is periodic on a torus
        self.wrong = torch.nn.Parameter(torch.tensor(wrong, dtype=torch.float64))

    def velocity(self, t, x):
        x = self.manifold.project(x)
        rows = x.flatten(1) @ self.whole + t[:, None] + torch.arange(self.whole.shape[0])
        return self.manifold.to_tangent(x, rows.sin().view_as(x))

    def forward(self, t, x, context=None, *, s=None):
        t = t.expand(x.shape[0])
        factor = 1 + self.wrong
        if s is None or bool((s == t).all()):
            return factor * self.velocity(t, x)
        y, count = x, 100
        h = (s - t).reshape(-1, *[1] * (x.dim() - 1)) / count
        for step in range(count):
            now, later = t + (s - t) * (step / count), t + (s - t) * ((step + 1) / count)
            middle = (now + later) / 2
            a = self.velocity(now, y)
            b = self.velocity(middle, y + h / 2 * a)
            c = self.velocity(middle, y + h / 2 * b)
            d = self.velocity(later, y + h * c)
            y = y + h / 6 * (a + 2 * b + 2 * c + d)
        return factor * self.manifold.log(x, self.manifold.project(y)) / (count * h)


class Towards(Field):
    r"""The velocity :math:`\log_x y / (1 - t)` of geodesics to one point y, which is its own average."""

    two_times = True

    def __init__(self, manifold, y):
        super().__init__(manifold.event_shape)
        self.manifold = manifold
        self.register_buffer("y", y)

    def forward(self, t, x, context=None, *, s=None):
        return self.manifold.log(x, self.y) / (1 - t).reshape(-1, *[1] * (x.dim() - 1))


def start(manifold, count, generator):
    return manifold.uniform((count,), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_the_average_velocity_of_an_integrated_field_has_no_error(method, manifold, generator):
    """The steps are up to 0.9 long in time, in both directions, so the factors of curvature count."""
    x, t = start(manifold, 6, generator), torch.tensor([0.0, 0.1, 0.3, 0.9, 1.0, 0.8], dtype=torch.float64)
    s, errors = t.flip(0), {}
    for wrong in (0.0, 0.1):
        field = Integrated(manifold, wrong)
        flow = ContinuousFlow(field, manifolds.Uniform(manifold), path=paths.Geodesic())
        errors[wrong] = method(**LONG.get(method, {}))._error(flow, t, s, x, field.velocity(t, x), None)
    assert errors[0.0].max() < 1e-17
    assert errors[0.1].min() > 1e-5


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_geodesics_to_one_point_have_no_error(method, manifold, generator):
    """One end for all pairs: a draw of the velocity is the velocity."""
    y = start(manifold, 1, generator)
    flow = ContinuousFlow(Towards(manifold, y), manifolds.Uniform(manifold), path=paths.Geodesic())
    objective = method(share=0.5, **LONG.get(method, {}))
    errors = objective(flow, y.expand(100, *manifold.event_shape), generator=generator)
    assert errors.max() < (1e-9 if LONG.get(method) else 1e-16)
    objective = method(share=0.5, **{name: 8 for name in LONG.get(method, ())})
    bent = flow.field.forward
    flow.field.forward = lambda *args, **options: 1.1 * bent(*args, **options)
    assert objective(flow, y.expand(100, *manifold.event_shape), generator=generator).mean() > 1e-3


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_whole_steps_along_geodesics_are_exact(manifold, steps, generator):
    x, y = start(manifold, 20, generator), start(manifold, 1, generator)
    flow = ContinuousFlow(Towards(manifold, y), manifolds.Uniform(manifold), path=paths.Geodesic())
    solution = flow.transport(x, 0.0, 0.8, solver=solvers.FlowMap(steps=steps))
    assert float(manifold.dist(solution.y, manifold.geodesic(x, y, torch.tensor(0.8))[0]).max()) < 1e-12
    assert solution.stats.nfe == steps


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_the_density_of_a_whole_step_is_the_integral_of_the_divergence(manifold, generator):
    flow = ContinuousFlow(Integrated(manifold), manifolds.Uniform(manifold), path=paths.Geodesic())
    x = start(manifold, 4, generator)
    with torch.no_grad():
        for t0, t1 in ((0.0, 1.0), (1.0, 0.2)):
            one, two, fine = (
                flow.transport(x, t0, t1, ladj=True, solver=each)
                for each in (solvers.FlowMap(steps=1), solvers.FlowMap(steps=2), solvers.RK4(steps=100))
            )
            for each in (one, two):
                torch.testing.assert_close(each.y, fine.y, rtol=0, atol=1e-9)
                torch.testing.assert_close(each.quadratures["ladj"], fine.quadratures["ladj"], rtol=0, atol=1e-8)
            assert fine.quadratures["ladj"].abs().max() > 0.1


def sphere_flow(scale=0.3):
    """A flow of two times on the sphere with random weights, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        field = fields.MLP(3, hidden=(16,), two_times=True)
        with torch.no_grad():
            field.output.weight.normal_(0, scale)
            field.span.layers[-1].weight.normal_(0, 0.1)
    return ContinuousFlow(field, manifolds.Uniform(SPHERE), path=paths.Geodesic()).double()


def test_the_density_of_a_whole_step_integrates_to_one():
    """In both directions: of the data (one step back), and of the samples, by the volumes that the step fills."""
    height, weight = (torch.as_tensor(each) for each in numpy_rule(24))
    turn = torch.arange(48, dtype=torch.float64) * (torch.pi / 24)
    radius = (1 - height.square()).sqrt()[:, None]
    x = torch.stack((radius * turn.cos(), radius * turn.sin(), height[:, None].expand(-1, 48)), -1).reshape(-1, 3)
    area = weight.repeat_interleave(48) * (torch.pi / 24)
    flow, whole = sphere_flow(), solvers.FlowMap(steps=1)
    with torch.no_grad():
        logp = flow.log_prob(x, solver=whole)
        solution = flow.transport(x, 0.0, 1.0, ladj=True, solver=whole)
    assert logp.std() > 0.1
    assert float((area * logp.exp()).sum()) == pytest.approx(1, abs=1e-8)
    assert float((area * solution.quadratures["ladj"].exp()).sum()) == pytest.approx(4 * torch.pi, abs=1e-7)


def numpy_rule(count):
    import numpy

    return numpy.polynomial.legendre.leggauss(count)


def test_samples_come_with_the_density_of_the_step(generator):
    flow, whole = sphere_flow(), solvers.FlowMap(steps=1)
    x, logp = flow.sample_and_log_prob((30,), generator=generator, solver=whole)
    torch.testing.assert_close(x.norm(dim=1), torch.ones(30, dtype=torch.float64))
    again, ladj = flow.decode(flow.base.sample((30,), generator=generator.manual_seed(0)).double(), solver=whole)
    assert again.shape == x.shape
    assert logp.shape == ladj.shape == (30,)
    assert logp.std() > 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_steps_of_length_zero_have_finite_gradients(method, dtype, generator):
    """A new network returns zero, so every step starts where it ends."""
    field = fields.MLP(3, hidden=(16,), two_times=True)
    flow = ContinuousFlow(field, manifolds.Uniform(SPHERE), path=paths.Geodesic()).to(dtype)
    x = SPHERE.uniform((64,), generator=generator).to(dtype)
    loss = method(share=0.5, both_ways=True)(flow, x, generator=generator)
    loss.mean().backward()
    gradients = [each.grad for each in flow.parameters() if each.grad is not None]
    assert loss.isfinite().all()
    assert all(each.isfinite().all() for each in gradients)
    assert max(float(each.abs().max()) for each in gradients) > 1e-4


@pytest.mark.parametrize("method", [objectives.Shortcut, objectives.LagrangianSelfDistillation])
def test_one_step_after_training_on_a_sphere(method, generator):
    """Two opposite points from the uniform law: one Euler step stays between, a whole step ends near one of them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        field = fields.MLP(3, hidden=(64, 64), two_times=True)
    flow = ContinuousFlow(field, manifolds.Uniform(SPHERE), path=paths.Geodesic())
    x = torch.tensor([0.0, 0.0, 1.0]) * (torch.randint(2, (1000, 1), generator=generator) * 2.0 - 1)
    training.fit(flow, method(share=0.5), x, steps=200, batch_size=128, lr=5e-3, seed=0, ema=None)
    flow.eval()
    ends = lambda solver: flow.sample((500,), solver=solver, generator=torch.Generator().manual_seed(0))
    apart = lambda solver: float(ends(solver)[:, 2].abs().clamp(max=1).acos().mean())
    assert apart(solvers.FlowMap(steps=1)) < 0.4 < 0.6 < apart(solvers.GeodesicEuler(steps=1))
