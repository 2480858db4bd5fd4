"""Whole steps on manifolds: the identities that train them, their densities, and steps that are known."""

import pytest
import torch

from cflow import ContinuousFlow, fields, manifolds, objectives, paths, solvers, training
from cflow.fields import Field
from cflow.manifolds.rotations import from_quaternion, quaternion

SPHERE, TORUS = manifolds.Sphere(2), manifolds.FlatTorus(2)
MANIFOLDS = [SPHERE, TORUS, manifolds.SO3()]
LONG = {objectives.Shortcut: {"steps": 2**20}}  # no step of the tests is made of two velocities
METHODS = [objectives.MeanFlow, objectives.Shortcut, objectives.LagrangianSelfDistillation]


def lift(manifold, x):
    """Returns points as unit vectors ``[B, parts, n]``: of a torus one on a circle per angle, of rotations one of four
    numbers, up to its sign."""
    if manifold == SPHERE:
        return x[:, None]
    return torch.stack((x.cos(), x.sin()), -1) if manifold == TORUS else quaternion(x)[:, None]


def lower(manifold, q):
    if manifold == SPHERE:
        return q[:, 0]
    return torch.atan2(q[..., 1], q[..., 0]) if manifold == TORUS else from_quaternion(q[:, 0])


class Linear(Field):
    r"""The average velocity of the flow :math:`q(t) = E_t q(0) / |E_t q(0)|` of unit vectors, which depends on time.

    .. math:: E_t = e^{t B} e^{t^2 C}, \qquad A = E_s E_t^{-1}, \qquad \mathrm{ladj} = \log \det A - n \log |A q|
    """

    two_times = True

    def __init__(self, manifold):
        super().__init__(manifold.event_shape)
        self.manifold, self.factor = manifold, 1.0
        shape = {SPHERE: (1, 3, 3), TORUS: (2, 2, 2)}.get(manifold, (1, 4, 4))
        matrices = 0.5 * torch.randn((2, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.register_buffer("matrices", matrices)

    def between(self, t, s):
        b, c = self.matrices
        at = lambda t: torch.matrix_exp(t * b) @ torch.matrix_exp(t.square() * c)
        return at(s[:, None, None, None]) @ at(t[:, None, None, None]).inverse()

    def end(self, t, s, x):
        q = (self.between(t, s) @ lift(self.manifold, x)[..., None])[..., 0]
        return lower(self.manifold, q / q.norm(dim=-1, keepdim=True))

    def ladj(self, t, s, x):
        a = self.between(t, s)
        stretch = (a @ lift(self.manifold, x)[..., None])[..., 0].norm(dim=-1).log()
        return (a.det().log() - a.shape[-1] * stretch).sum(1)

    def velocity(self, t, x):
        return torch.func.jvp(lambda s: self.end(t, s, x), (t,), (torch.ones_like(t),))[1]

    def forward(self, t, x, context=None, *, s=None):
        t = t.expand(x.shape[0]).clone()  # one memory location per time, for the derivative
        if s is None:
            return self.factor * self.velocity(t, x)
        span = (s - t).reshape(-1, *[1] * (x.dim() - 1))
        u = self.manifold.log(x, self.end(t, s, x)) / torch.where(span == 0, 1.0, span)
        return self.factor * torch.where(span == 0, self.velocity(t, x), u)


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


def linear_flow(manifold):
    return ContinuousFlow(Linear(manifold), manifolds.Uniform(manifold), path=paths.Geodesic())


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_the_average_velocity_of_a_known_flow_has_no_error_on_a_manifold(method, manifold, generator):
    """The steps are up to one long, in both directions, and cross the seam, so the factors of curvature count."""
    flow, x = linear_flow(manifold), start(manifold, 20, generator)
    t, s = (torch.rand(20, generator=generator, dtype=torch.float64) for _ in range(2))
    t[0], s[0] = 0.0, 1.0
    t[1] = s[1]
    v = flow.field.velocity(t, x)
    error = lambda: method(**LONG.get(method, {}))._error(flow, t, s, x, v, None)
    assert error().max() < 1e-20
    flow.field.factor = 1.1
    assert error().mean() > 3e-5


@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_geodesics_to_one_point_have_no_error(method, manifold, generator):
    """One end for all pairs: a draw of the velocity is the velocity."""
    y = start(manifold, 1, generator)
    flow = ContinuousFlow(Towards(manifold, y), manifolds.Uniform(manifold), path=paths.Geodesic())
    objective = method(share=0.5, **LONG.get(method, {}))
    errors = objective(flow, y.expand(100, *manifold.event_shape), generator=generator)
    assert errors.max() < 1e-9
    objective = method(share=0.5, **dict.fromkeys(LONG.get(method, ()), 8))
    bent = flow.field.forward
    flow.field.forward = lambda *args, **options: 1.1 * bent(*args, **options)
    assert objective(flow, y.expand(100, *manifold.event_shape), generator=generator).mean() > 1e-3


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_whole_steps_along_geodesics_are_exact(manifold, steps, generator):
    x, y = start(manifold, 20, generator), start(manifold, 1, generator)
    flow = ContinuousFlow(Towards(manifold, y), manifolds.Uniform(manifold), path=paths.Geodesic())
    solution = flow.transport(x, 0.0, 0.8, solver=solvers.FlowMap(steps=steps))
    assert float(manifold.dist(solution.y, manifold.geodesic(x, y, x.new_tensor(0.8))[0]).max()) < 1e-12
    assert solution.stats.nfe == steps


@pytest.mark.parametrize("manifold", [SPHERE, manifolds.Poincare(3), manifolds.Lorentz(2)], ids=str)
def test_steps_towards_a_point_in_the_metric_of_the_manifold(manifold, generator):
    r"""Distances r shrink to :math:`\lambda r`, and circles by the ratio of their lengths, sin or sinh."""
    base = manifolds.WrappedNormal(manifold, scale=0.7).double()
    x, y = base.sample((12,), generator=generator), base.sample((1,), generator=generator)
    flow = ContinuousFlow(Towards(manifold, y), base, path=paths.Geodesic())
    solution = flow.transport(x, 0.1, 0.7, ladj=True, solver=solvers.FlowMap(steps=1))
    length, shrink = torch.sin if manifold == SPHERE else torch.sinh, torch.tensor(1 / 3, dtype=torch.float64)
    before, after = manifold.dist(x, y), manifold.dist(solution.y, y)
    torch.testing.assert_close(after, shrink * before)
    expected = shrink.log() + (manifold.dim - 1) * (length(after) / length(before)).log()
    torch.testing.assert_close(solution.quadratures["ladj"], expected)
    for method in METHODS:
        t, s = (torch.full((12,), each, dtype=torch.float64) for each in (0.1, 0.7))
        v = flow.field(t, x)
        assert method(**LONG.get(method, {}))._error(flow, t, s, x, v, None).max() < 1e-18


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("manifold", MANIFOLDS, ids=str)
def test_the_log_determinant_of_a_whole_step_on_a_manifold(manifold, steps, generator):
    flow, x = linear_flow(manifold), start(manifold, 20, generator)
    for t0, t1 in ((0.0, 1.0), (0.9, 0.2)):
        with torch.no_grad():
            solution = flow.transport(x, t0, t1, ladj=True, solver=solvers.FlowMap(steps=steps))
        ends = (torch.full((20,), each, dtype=torch.float64) for each in (t0, t1))
        expected = flow.field.ladj(*ends, x)
        torch.testing.assert_close(solution.quadratures["ladj"], expected, rtol=0, atol=1e-10)
        assert expected.abs().max() > 0.5


def test_the_density_of_a_whole_step_is_that_of_the_equation(generator):
    flow, x = linear_flow(SPHERE), start(SPHERE, 4, generator)
    with torch.no_grad():
        step, fine = (
            flow.transport(x, 1.0, 0.0, ladj=True, solver=each)
            for each in (solvers.FlowMap(steps=1), solvers.Dopri8(rtol=1e-10, atol=1e-11))
        )
    torch.testing.assert_close(step.y, fine.y, rtol=0, atol=1e-8)
    torch.testing.assert_close(step.quadratures["ladj"], fine.quadratures["ladj"], rtol=0, atol=1e-8)


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


def test_samples_come_with_the_density_of_the_step():
    flow, whole = sphere_flow(), solvers.FlowMap(steps=2)
    seeded = lambda: torch.Generator().manual_seed(3)
    x, logp = flow.sample_and_log_prob((30,), generator=seeded(), solver=whole)
    x0 = flow.base.sample((30,), generator=seeded())
    solution = flow.transport(x0, 0.0, 1.0, solver=whole, ladj=True)
    torch.testing.assert_close(x, solution.y)
    torch.testing.assert_close(logp, flow.base.log_prob(x0) - solution.quadratures["ladj"])
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
    """Two opposite points from the uniform law: one Euler step stays between, a whole step ends nearer to them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        field = fields.MLP(3, hidden=(64, 64), two_times=True)
    flow = ContinuousFlow(field, manifolds.Uniform(SPHERE), path=paths.Geodesic())
    x = torch.tensor([0.0, 0.0, 1.0]) * (torch.randint(2, (1000, 1), generator=generator) * 2.0 - 1)
    training.fit(flow, method(share=0.5), x, steps=100, batch_size=128, lr=5e-3, seed=0, ema=None)
    flow.eval()
    ends = lambda solver: flow.sample((500,), solver=solver, generator=torch.Generator().manual_seed(0))
    apart = lambda solver: float(ends(solver)[:, 2].abs().clamp(max=1).acos().mean())
    assert apart(solvers.FlowMap(steps=1)) < 0.8 * apart(solvers.GeodesicEuler(steps=1))
