"""Continuous flows on manifolds: log-determinants, ownership, ends of the interval, solvers, refusals."""

import copy

import pytest
import torch

import cflow
from cflow import ContinuousFlow, bases, bijections, divergence, fields, manifolds, objectives, paths, solvers, training
from cflow.guidance import AutoGuidance
from cflow.testing import check_flow

SPHERE = manifolds.Sphere(2)
FINE = solvers.RK4(16)


def sphere_flow(path=None, solver=FINE, scale=0.3):
    """A flow on the sphere with random weights, in float64."""
    torch.manual_seed(0)
    path = paths.Geodesic() if path is None else path
    flow = ContinuousFlow(fields.MLP(3, hidden=(16,)), manifolds.Uniform(SPHERE), path=path, solver=solver)
    with torch.no_grad():
        flow.field.output.weight.normal_(0, scale)
    return flow.double()


def test_a_flow_on_the_sphere_conforms():
    check_flow(sphere_flow())


def test_a_flow_that_predicts_the_end_conforms():
    """Its velocity grows as 1 / (1 - t)."""
    flow = sphere_flow(paths.Geodesic(predict="x1"), solvers.Dopri5(rtol=1e-5, atol=1e-6), 0.05)
    check_flow(flow, tolerance=1e-3, density=False)


def test_a_flow_of_places_conforms():
    check_flow(sphere_flow().with_transform(bijections.LatLon()))


class Flat(torch.nn.Module):
    """A small network on flattened points, with random weights; zero at the boundary of a simplex."""

    def __init__(self, shape, bounded):
        super().__init__()
        torch.manual_seed(0)
        self.bounded, size = bounded, shape.numel()
        self.net = torch.nn.Sequential(torch.nn.Linear(size, 8), torch.nn.Tanh(), torch.nn.Linear(8, size))

    def forward(self, t, x, context=None, *, s=None):
        v = self.net(x.flatten(1)).reshape(x.shape)
        return 20 * x.prod(-1, keepdim=True) * v if self.bounded else v


@pytest.mark.parametrize(
    "base",
    [
        manifolds.Uniform(manifolds.SO3()),
        manifolds.WrappedNormal(manifolds.Lorentz(2), scale=0.5),
        manifolds.WrappedNormal(manifolds.Poincare(2), scale=0.5),
        manifolds.WrappedNormal(manifolds.SPD(2), scale=0.5),
        manifolds.Dirichlet((2.0, 2.0, 2.0)),
    ],
    ids=lambda base: repr(base.manifold),
)
def test_densities_are_riemannian_on_every_manifold(base, generator):
    """Against the Jacobian between frames and the volume elements, and by an integral over points of the base."""
    manifold = base.manifold
    field = Flat(manifold.event_shape, bounded=manifold.injectivity == 0)
    flow = ContinuousFlow(field, base, path=paths.Geodesic(), solver=solvers.RK4(12)).double()
    z = flow.base.sample((3,), generator=generator)
    x, ladj = flow.decode(z)
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda row: flow.decode(row[None])[0][0], z[i])
        jacobian = jacobian.reshape(z[i].numel(), -1)
        tangent = manifold.frame(x[i]).flatten(1) @ jacobian @ manifold.frame(z[i]).flatten(1).T
        change = manifold.log_volume_element(x[i]) - manifold.log_volume_element(z[i])
        torch.testing.assert_close(ladj[i], torch.linalg.slogdet(tangent).logabsdet + change, atol=1e-4, rtol=0)
    z = base.double().sample((1000,), generator=generator)
    with torch.no_grad():
        ratio = (flow.log_prob(z) - base.log_prob(z)).exp()
    # Five standard errors: fails once in two million seeds.
    assert abs(float(ratio.mean()) - 1) < 5 * float(ratio.std()) / len(z) ** 0.5


def test_a_flow_of_angles_conforms():
    torch.manual_seed(0)
    field = fields.PeriodicMLP(2, hidden=(16,))
    torch.nn.init.normal_(field.output.weight, std=0.2)
    check_flow(ContinuousFlow(field, manifolds.Uniform(manifolds.FlatTorus(2)), path=paths.Geodesic(), solver=FINE))


def test_an_untrained_flow_has_the_density_of_its_base(generator):
    flow = ContinuousFlow(fields.MLP(3), manifolds.Uniform(SPHERE), path=paths.Geodesic()).double()
    x = flow.sample((4,), generator=generator)
    torch.testing.assert_close(flow.log_prob(x), torch.full((4,), -2.5310242469692907, dtype=torch.float64))


class Counting(torch.nn.Module):
    """A network that counts the products with its transposed Jacobian."""

    def __init__(self, field):
        super().__init__()
        self.field, self.products = field, 0

    def forward(self, t, x, context=None, *, s=None):
        v = self.field(t, x)
        if v.requires_grad:
            v.register_hook(self.count)
        return v

    def count(self, grad):
        self.products += 1


def test_the_divergence_in_frames_is_that_of_the_ambient_space_at_fewer_products(generator):
    flow = sphere_flow()
    flow.field = Counting(flow.field)
    x = flow.sample((5,), generator=generator)
    velocity, t = flow.velocity_field(), torch.tensor(0.3, dtype=torch.float64)
    found = {}
    for name, each in {"ambient": divergence.Exact(chunk=1), "frames": divergence.Exact(chunk=1).on(SPHERE)}.items():
        flow.field.products = 0
        found[name] = each(velocity, t, x, None, None)[1], flow.field.products
    torch.testing.assert_close(found["ambient"][0], found["frames"][0], atol=1e-12, rtol=0)
    assert found["ambient"][1] == 3
    assert found["frames"][1] == 2


def test_the_divergence_agrees_with_that_in_spherical_coordinates(generator):
    """In latitude and longitude it is (d(v_lat cos(lat)) / d lat + d v_lon / d lon) / cos(lat)."""
    flow = sphere_flow()
    place = torch.tensor([[30.0, 40.0]], dtype=torch.float64)
    to = lambda x: bijections.LatLon().encode(x)[0]

    def components(angles):
        x = to(torch.rad2deg(angles)[None])
        lat, lon = angles
        north = torch.stack((-lat.sin() * lon.cos(), -lat.sin() * lon.sin(), lat.cos()))
        east = torch.stack((-lon.sin(), lon.cos(), lon * 0))
        v = flow.velocity(0.3, x)[0]
        return torch.stack(((v @ north) * lat.cos(), v @ east))

    angles = torch.deg2rad(place[0])
    expected = torch.autograd.functional.jacobian(components, angles).trace() / angles[0].cos()
    t = torch.tensor(0.3, dtype=torch.float64)
    _, found, _ = divergence.Exact().on(SPHERE)(flow.velocity_field(), t, to(place), None, None)
    torch.testing.assert_close(found[0], expected)


def test_estimates_of_the_divergence_are_unbiased_on_the_sphere(generator):
    flow = sphere_flow()
    x = flow.sample((1,), generator=generator).expand(4000, 3)
    t, f = torch.tensor(0.3, dtype=torch.float64), flow.velocity_field()
    each = divergence.Hutchinson().on(SPHERE)
    values = each(f, t, x, each.begin(x, generator), None)[1]
    exact = divergence.Exact()(f, t, x[:1], None, None)[1]
    # Five standard errors: fails once in two million seeds.
    assert abs(float((values.mean() - exact[0]).detach())) < 5 * float(values.detach().std()) / len(values) ** 0.5


def test_the_gradient_of_a_log_density_is_right(generator):
    """Through the frames, which turn with the points."""
    flow = sphere_flow()
    x = flow.sample((2,), generator=generator)
    weight = flow.field.output.weight
    (found,) = torch.autograd.grad(flow.log_prob(x, solver=solvers.RK4(8)).sum(), weight)
    step = torch.zeros_like(weight)
    step[0, 3] = 1e-5
    with torch.no_grad():
        weight += step
        up = flow.log_prob(x, solver=solvers.RK4(8)).sum()
        weight -= 2 * step
        down = flow.log_prob(x, solver=solvers.RK4(8)).sum()
    assert float(found[0, 3]) == pytest.approx(float(up - down) / 2e-5, rel=1e-5)


def test_one_manifold_belongs_to_a_flow(tmp_path):
    flow = sphere_flow()
    loaded = cflow.load(cflow.save(flow, tmp_path / "model"))
    for each in (flow, loaded, copy.deepcopy(flow)):
        assert each.manifold is each.base.manifold
        assert each.path.manifold is each.manifold
    given = ContinuousFlow(fields.MLP(3), bases.Empirical(SPHERE.uniform((5,))), path=paths.Geodesic(), manifold=SPHERE)
    loaded = cflow.load(cflow.save(given, tmp_path / "given"))
    assert loaded.manifold == SPHERE
    assert loaded.path.manifold is loaded.manifold


def test_the_rest_of_the_interval_follows_a_geodesic(generator):
    """With the exact prediction of one data point, a single step ends at it."""
    end = SPHERE.uniform((1,), generator=generator, dtype=torch.float64)

    class ToEnd(torch.nn.Module):
        def forward(self, t, x, context=None, *, s=None):
            return SPHERE.log(x, end)

    flow = ContinuousFlow(ToEnd(), manifolds.Uniform(SPHERE), path=paths.Geodesic(predict="x1")).double()
    x = flow.base.sample((6,), generator=generator).double()
    stop = flow.transport(x, 0.0, 1.0).y
    torch.testing.assert_close(stop, end.expand(6, 3), atol=1e-6, rtol=0)
    back = flow.transport(stop, 1.0, 0.9).y
    torch.testing.assert_close(
        SPHERE.dist(back, end.expand(6, 3)), torch.zeros(6, dtype=torch.float64), atol=1e-5, rtol=0
    )


def test_solvers_of_the_ambient_space_report_the_projection(generator):
    flow = sphere_flow()
    x = flow.base.sample((5,), generator=generator).double()
    coarse, fine = (flow.transport(x, 0.0, 1.0, solver=each) for each in (solvers.Euler(4), FINE))
    assert float(coarse.stats.projection.min()) > 1e-4 > 1e-5 > float(fine.stats.projection.max())
    for solution in (coarse, fine):
        torch.testing.assert_close(solution.y.norm(dim=1), torch.ones(5, dtype=torch.float64))


def test_points_off_the_manifold_have_no_density(generator):
    flow = sphere_flow()
    x = flow.sample((2,), generator=generator) * torch.tensor([[1.0], [1.1]])
    logp = flow.log_prob(x)
    assert logp[0].isfinite()
    assert logp[1] == -torch.inf


def test_estimators_of_the_trace_have_the_exact_value_between_tangent_spaces(generator):
    """The mean over all probes of signs is the expectation; sketches that have all directions are exact."""
    flow = sphere_flow()
    x = flow.base.sample((3,), generator=generator).double()
    t, f = torch.full((3,), 0.4, dtype=torch.float64), flow.velocity_field()
    _, trace, norm = divergence.Exact().on(SPHERE)(f, t, x, None)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3).expand(3, 8, 3)
    for estimator, probe in (
        (divergence.Hutchinson(probes=8), signs),
        (divergence.XTrace(4), x.new_empty(3, 0, 3)),
        (divergence.HutchPlusPlus(3), x.new_empty(3, 0, 3)),
    ):
        _, estimate, squares = estimator.on(SPHERE)(f, t, x, probe)
        torch.testing.assert_close((estimate, squares), (trace, norm))


def test_frames_have_the_dtype_of_the_points_for_every_default(float64):
    """The default of torch is float64 here."""
    x = SPHERE.origin(dtype=torch.float32)
    assert SPHERE.frame(x).dtype == torch.float32
    assert manifolds.Euclidean(3).cost(x.new_empty(0, 3), x.unsqueeze(0)).shape == (0, 1)


def test_estimates_off_the_manifold_have_no_density(generator):
    flow = sphere_flow(solver=solvers.RK4(4))
    x = flow.sample((2,), generator=generator) * torch.tensor([[1.0], [1.1]])
    value, error = flow.log_prob_estimate(x, divergence=divergence.Hutchinson(probes=2), generator=generator)
    assert value[0].isfinite()
    assert value[1] == -torch.inf
    assert error[1] == 0


def test_guidance_by_a_plain_field_stays_tangent(generator):
    """A weak field knows no manifold: the density under it is still that of the samples."""
    flow = sphere_flow()
    weak = fields.MLP(3, hidden=(4,)).double()
    torch.nn.init.normal_(weak.output.weight, 0, 0.3)
    guided = AutoGuidance(weak, 1.5)
    x = flow.base.sample((3,), generator=generator).double()
    v = flow.velocity(0.3, x, guidance=guided)
    torch.testing.assert_close((v * x).sum(1), torch.zeros(3, dtype=torch.float64))
    decoded = lambda row: flow.decode(row[None], guidance=guided)[0][0]
    y, ladj = flow.decode(x, guidance=guided)
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(decoded, x[i])
        between = SPHERE.frame(y[i]) @ jacobian @ SPHERE.frame(x[i]).T
        torch.testing.assert_close(ladj[i], torch.linalg.slogdet(between)[1], atol=1e-5, rtol=0)
    with pytest.raises(TypeError, match="does not know the manifold"):
        flow.log_prob(x, guidance=AutoGuidance(weak, 0.0), divergence=divergence.Analytic())


def test_points_whose_way_back_leaves_the_simplex_have_no_density():
    """A constant velocity moves a triangle within its plane: the density is that of the points that stay."""
    shift = torch.tensor([0.2, -0.1, -0.1], dtype=torch.float64)

    class Constant(torch.nn.Module):
        def forward(self, t, x, context=None, *, s=None):
            return shift.expand_as(x)

    simplex = manifolds.Simplex(3)
    flow = ContinuousFlow(Constant(), manifolds.Uniform(simplex), solver=solvers.RK4(2)).double()
    x = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.4, 0.5], [0.0, 0.3, 0.7], [0.6, 0.4 + 1e-9, -1e-9]], dtype=torch.float64)
    ambient = lambda p: -0.5 * p.log().sum()
    expected = -simplex.log_volume + ambient(x[0] - shift) - ambient(x[0])
    logp = flow.log_prob(x)
    torch.testing.assert_close(logp[0], expected)
    assert (logp[1:3] == -torch.inf).all()
    assert not logp.isnan().any()


def test_a_product_of_bases_is_on_a_product_of_manifolds(generator):
    """The density of an untrained flow is that of its base, with respect to the product of the volumes."""
    space = manifolds.Product({"place": SPHERE, "magnitude": manifolds.Euclidean(2)})
    base = bases.Product(manifolds.Uniform(SPHERE), bases.Normal(2))
    flow = ContinuousFlow(fields.MLP(5), base, path=paths.Geodesic(), manifold=space, solver=FINE)
    x = flow.sample((3,), generator=generator)
    expected = -SPHERE.log_volume + bases.Normal(2).log_prob(x[:, 3:])
    torch.testing.assert_close(flow.log_prob(x), expected)


def test_training_reaches_a_law_on_the_sphere(generator):
    """The von Mises-Fisher law of concentration 20 has an entropy of log(2 pi e / 20) nats, up to 1e-17."""
    u = torch.rand(4000, generator=generator)
    height = 1 + (u + (1 - u) * torch.tensor(-40.0).exp()).log() / 20
    turn = 2 * torch.pi * torch.rand(4000, generator=generator)
    side = (1 - height.square()).sqrt()
    x = torch.stack((side * turn.cos(), side * turn.sin(), height), 1)
    flow = ContinuousFlow(fields.MLP(3), manifolds.Uniform(SPHERE), path=paths.Geodesic())
    training.fit(flow, objectives.FlowMatching(), x, steps=400, batch_size=256, lr=5e-3, seed=0)
    with torch.no_grad():
        value = float(flow.log_prob(x[:500]).mean())
    assert value == pytest.approx(-(1 + torch.tensor(2 * torch.pi / 20).log().item()), abs=0.15)


POINTS = SPHERE.uniform((8,), generator=torch.Generator().manual_seed(0))
ONE = ContinuousFlow(fields.MLP(3), manifolds.Uniform(SPHERE), path=paths.Geodesic())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ContinuousFlow(fields.MLP(3), bases.Normal(3), path=paths.Geodesic()), "needs a manifold"),
        (lambda: ContinuousFlow(fields.MLP(3), manifolds.Uniform(SPHERE), path=paths.Linear()), "not flat"),
        (lambda: ContinuousFlow(fields.MLP(3), bases.Normal(3), manifold=manifolds.Sphere(1)), "the same shape"),
        (
            lambda: ContinuousFlow(fields.MLP(3), bases.Empirical(POINTS), path=paths.Linear(), manifold=SPHERE),
            "not flat",
        ),
        (
            lambda: ContinuousFlow(fields.MLP(3), bases.Normal(3), path=paths.Geodesic(), manifold=SPHERE),
            "not with respect to the volume",
        ),
        (
            lambda: ContinuousFlow(fields.MLP(3), bases.Empirical(2 * POINTS), path=paths.Geodesic(), manifold=SPHERE),
            "the points of the base are not on the manifold",
        ),
        (
            lambda: ContinuousFlow(fields.MLP(3), bases.Simplex(3), manifold=manifolds.Simplex(3)),
            "not with respect to the volume",
        ),
        (
            lambda: ContinuousFlow(fields.MLP(5), bases.Product(manifolds.Uniform(SPHERE), bases.Normal(2))),
            "its parts are on manifolds",
        ),
        (
            lambda: ContinuousFlow(fields.PeriodicMLP(2), manifolds.Uniform(manifolds.FlatTorus(2, 360.0))),
            "build it with period=360",
        ),
        (lambda: objectives.ConsistencyFlowMatching()(ONE, POINTS), "ConsistencyFlowMatching: this loss adds vectors"),
        (lambda: objectives.MultiMarginal((0.0, 1.0))(ONE, POINTS.reshape(4, 2, 3)), "adds vectors"),
        (lambda: training.fit_bespoke(ONE, steps=4), "leaves the manifold"),
        (lambda: ONE.with_path(paths.Linear()), "not affine"),
        (lambda: ONE.score(0.5, POINTS), "no score"),
        (lambda: ONE.sample((2,), solver=solvers.UniPC(4)), "not affine"),
        (lambda: ONE.sample((2,), solver=solvers.EulerMaruyama(4)), "no score"),
        (lambda: ONE.log_prob(POINTS, divergence=divergence.Analytic()), "does not know the manifold"),
        (lambda: training.fit(ONE, objectives.FlowMatching(), 2 * POINTS, steps=1, batch_size=4), "8 rows are not"),
        (
            lambda: training.fit(
                ONE.with_transform(bijections.LatLon()), objectives.FlowMatching(),
                torch.tensor([[10.0, 20.0], [100.0, 20.0]]), steps=1, batch_size=2,
            ),
            r"1 of 2 rows are not in the domain of LatLon \(rows \[1\]\)",
        ),
        (
            lambda: training.fit(
                ONE.with_transform(bijections.Standardise(3, 0.5)), objectives.FlowMatching(), POINTS, steps=1,
                batch_size=4,
            ),
            r"8 of 8 rows are not on Sphere\(dim=2\) after the transforms",
        ),
        (lambda: solvers.Dopri5().solve(lambda t, y: y, POINTS, 0.0, 1.0, manifold=SPHERE), "would leave the manifold"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_on_a_manifold_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
