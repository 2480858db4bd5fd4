"""Premetric paths against geodesics, and against the linear decrease of the distance on meshes."""

import copy
import math

import pytest
import torch
from meshes import sphere, square

import cflow
from cflow import ContinuousFlow, fields, manifolds, objectives, paths, training


@pytest.fixture(scope="module")
def ball():
    return manifolds.Mesh(*sphere(2), eigenpairs=60)


def ends(manifold, count, generator):
    return manifold.uniform((2, count), generator=generator, dtype=torch.float64)


def test_on_a_sphere_it_is_the_geodesic_path(generator):
    globe = manifolds.Sphere(2)
    x0, x1 = ends(globe, 50, generator)
    t = torch.rand(50, generator=generator, dtype=torch.float64)
    for schedule in (None, paths.Cosine()):
        found = paths.Premetric(schedule, steps=7).on(globe).sample(x0, x1, t)
        expected = paths.Geodesic(schedule).on(globe).sample(x0, x1, t)
        torch.testing.assert_close(found.xt, expected.xt, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.target, expected.target, rtol=1e-5, atol=1e-5)


def test_the_distance_decreases_linearly_to_first_order_in_the_steps(ball, generator):
    x0, x1 = ends(ball, 60, generator)
    t = torch.tensor([[0.37], [0.81]], dtype=torch.float64).expand(2, 60)
    start = ball.dist(x0, x1)
    errors = []
    for steps in (20, 80):
        sample = paths.Premetric(steps=steps, limit=20.0).on(ball).simulate(x0, x1, t)
        left = ball.dist(sample.xt, sample.x1).unflatten(0, (2, 60)) / start
        errors.append((left - (1 - t)).abs().median())
    assert errors[1] < 0.02
    assert errors[0] / errors[1] > 2.5


def test_the_velocity_is_the_one_that_the_formula_states(ball, generator):
    """Its product with the gradient of the distance is minus the distance over the time left."""
    x0, x1 = ends(ball, 40, generator)
    t = torch.rand(40, generator=generator, dtype=torch.float64)
    sample = paths.Premetric(steps=20, limit=1e9).on(ball).sample(x0, x1, t)
    x = sample.xt.clone().requires_grad_()
    d = ball.dist(x, x1)
    (slope,) = torch.autograd.grad(d.sum(), x)
    torch.testing.assert_close((slope * sample.target).sum(1), -d.detach() / (1 - t), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(slope, ball.premetric(sample.xt, x1)[1])
    frame = ball.frame(sample.xt)
    torch.testing.assert_close(sample.target, (frame.mT @ frame @ sample.target.unsqueeze(-1)).squeeze(-1))
    slow = paths.Premetric(steps=20, limit=0.5).on(ball).sample(x0, x1, t).target.norm(dim=1)
    assert float(slow.max()) == pytest.approx(0.5 * math.exp(ball.log_volume / 2))


def test_curves_end_at_the_data(ball, generator):
    x0, x1 = ends(ball, 100, generator)
    path = paths.Premetric(steps=100).on(ball)
    assert path.interval == (0.0, pytest.approx(0.999))
    sample = path.sample(x0, x1, torch.full((100,), path.interval[1], dtype=torch.float64))
    assert float((sample.xt - x1).norm(dim=1).median()) < 2e-3
    moved = path.step(sample.target, sample.xt, sample.t, torch.ones(100, dtype=torch.float64))
    assert float(ball.deviation(moved).max()) < 1e-9
    # At the data itself the velocity is zero, not NaN.
    still = path.sample(x1, x1, torch.rand(100, generator=generator, dtype=torch.float64))
    torch.testing.assert_close(still.xt, x1)
    torch.testing.assert_close(still.target, torch.zeros_like(x1))


def test_each_path_is_simulated_once_for_all_its_points(ball, generator, monkeypatch):
    flow = ContinuousFlow(fields.MLP(3, (8,)), manifolds.Uniform(ball), path=paths.Premetric(steps=5)).double()
    curves = []
    simulate = type(ball).descent
    monkeypatch.setattr(
        type(ball), "descent", lambda mesh, x0, *args, **kw: curves.append(len(x0)) or simulate(mesh, x0, *args, **kw)
    )
    x = ball.uniform((6,), generator=generator, dtype=torch.float64)
    objective = objectives.FlowMatching(points_per_pair=4)
    batch = objective.make_batch(flow, x, generator=generator)
    assert curves == [6]
    assert torch.equal(batch.x1, x.repeat(4, 1))
    assert len(batch.sample.t.unique()) == 24
    alone = flow.path.sample(batch.x0, batch.x1, batch.sample.t)
    torch.testing.assert_close(batch.sample.xt, alone.xt)
    torch.testing.assert_close(batch.sample.target, alone.target)
    loss = objective.loss(flow, batch)
    torch.testing.assert_close(loss, batch.sample.target.square().sum(1) / 2)  # an untrained network is zero


def test_several_points_of_a_pair_keep_their_context(generator):
    flow = ContinuousFlow(fields.MLP(2, (8,), context=1), cflow.bases.Normal(2), path=paths.Linear())
    x, context = torch.randn(5, 2, generator=generator), torch.arange(5.0).unsqueeze(1)
    objective = objectives.FlowMatching(points_per_pair=3)
    batch = objective.make_batch(flow, x, context, generator)
    assert torch.equal(batch.context, context.repeat(3, 1))
    assert len(batch.t.unique()) == 15
    torch.testing.assert_close(objective.loss(flow, batch), (batch.x1 - batch.x0).square().mean(1))
    with pytest.raises(ValueError, match="points_per_pair"):
        objectives.FlowMatching(points_per_pair=0)


def test_training_is_resumed_bit_for_bit_within_a_pool(tmp_path, ball, generator):
    """Nothing is stored between steps: a pool of paths is simulated again."""
    data = ball.uniform((64,), generator=generator)

    def train(stop=None, **options):
        def stumble(step, flow, row):
            if step == stop:
                raise InterruptedError

        torch.manual_seed(0)
        path = paths.Premetric(steps=3)
        flow = ContinuousFlow(fields.MLP(3, (8,)), manifolds.Uniform(copy.deepcopy(ball).float()), path=path)
        objective = objectives.FlowMatching(points_per_pair=2)
        settings = {"steps": 6, "batch_size": 4, "pool": 4, "checkpoint_every": 3, "callbacks": [stumble]}
        training.fit(flow, objective, data, **settings, **options)
        return flow.field.state_dict()

    whole = train()
    with pytest.raises(InterruptedError):
        train(5, out=tmp_path)
    parts = train(out=tmp_path, resume=True, prefetch=0)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_flow_on_a_mesh_has_the_density_of_its_samples(generator):
    """On a flat mesh, with a velocity that is not zero: against the divergence in the plane."""
    plate = manifolds.Mesh(*square(6), eigenpairs=4)

    class Swirl(torch.nn.Module):
        def forward(self, t, x, context=None):
            a, b = x[:, 0], x[:, 1]
            inside = (a * (1 - a) * b * (1 - b)).unsqueeze(1)  # no flux across the boundary
            return inside * torch.stack((1 + b, 2 - a, 1 + a), 1)

    flow = ContinuousFlow(Swirl(), manifolds.Uniform(plate)).double()
    x, logp = flow.sample_and_log_prob((20,), generator=generator, solver=cflow.solvers.RK4(steps=8))
    assert float(logp.std()) > 0.01
    torch.testing.assert_close(flow.log_prob(x, solver=cflow.solvers.RK4(steps=8)), logp, rtol=0, atol=1e-6)
    flat = ContinuousFlow(Swirl2(), cflow.bases.Uniform(2)).double()
    torch.testing.assert_close(flat.log_prob(x[:, :2]), logp, rtol=0, atol=1e-4)


class Swirl2(torch.nn.Module):
    def forward(self, t, x, context=None):
        a, b = x[:, 0], x[:, 1]
        return (a * (1 - a) * b * (1 - b)).unsqueeze(1) * torch.stack((1 + b, 2 - a), 1)


def test_the_density_on_a_mesh_converges_to_that_on_the_sphere(generator):
    """Second order in the length of edges: the curvature counts, which no triangle has."""
    mix = torch.randn(3, 3, generator=generator, dtype=torch.float64)

    class Waves(torch.nn.Module):
        def forward(self, t, x, context=None):
            return torch.sin(x @ mix + 1)

    solver = cflow.solvers.RK4(steps=8)
    exact = ContinuousFlow(Waves(), manifolds.Uniform(manifolds.Sphere(2))).double()
    errors = []
    for rounds in (1, 2):
        mesh = manifolds.Mesh(*sphere(rounds), eigenpairs=1)
        x = mesh.vertices[mesh.faces].mean(1)
        with torch.no_grad():
            expected = exact.log_prob(manifolds.Sphere(2).project(x), solver=solver)
            found = ContinuousFlow(Waves(), manifolds.Uniform(mesh)).double().log_prob(x, solver=solver)
        errors.append(float((found - expected).abs().mean()))
    assert errors[1] < 0.1
    assert errors[0] > 2.5 * errors[1]


def test_wrong_arguments_are_named(ball):
    for wrong in ({"steps": 0}, {"limit": 0.0}, {"predict": "x1"}, {"margin": 0.7}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            paths.Premetric(**wrong)
    with pytest.raises(ValueError, match="manifold"):
        paths.Premetric().on(None)
    with pytest.raises(ValueError, match="closed form"):
        paths.Linear().simulate(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 1))
    x = ball.vertices[:1]
    with pytest.raises(ValueError, match="mask"):
        paths.Premetric().on(ball).sample(x, x, torch.zeros(1), mask=torch.ones(1, 3, dtype=torch.bool))
