import math

import pytest
import torch
from curves import spin, spun, swirl, swirled
from flat import OnFlat

from cflow.manifolds import SO3, Sphere
from cflow.solvers import (
    Backprop,
    Checkpointed,
    Dopri5,
    GeodesicDopri5,
    GeodesicEuler,
    GeodesicMidpoint,
    GeodesicRK4,
    ProjectedEuler,
)
from cflow.testing import check_solver
from cflow.testing.solvers import SOLVER_CHECKS

SPHERE = Sphere(2)
# The others are about states of several parts, or bounds of errors that are relative to the state.
CHECKS = [name for name in SOLVER_CHECKS if name not in ("batch", "structures", "failures")]
EXPENSIVE = ("memory", "gradients", "second derivatives")
GRIDS = {GeodesicEuler: 1, ProjectedEuler: 1, GeodesicMidpoint: 2, GeodesicRK4: 4}
OPTIONS = {"steps of its own": {}, "common steps": {"per_sample": False}, "checkpointed": {"gradient": Checkpointed()}}


@pytest.mark.parametrize("check", [name for name in CHECKS if name not in EXPENSIVE])
@pytest.mark.parametrize("method", GRIDS)
def test_grids_conform_on_a_flat_manifold(method, check):
    check_solver(lambda steps: OnFlat(method(int(steps))), order=GRIDS[method], adaptive=False, checks=[check])


@pytest.mark.parametrize(
    ("options", "check"),
    [(name, check) for check in CHECKS for name in OPTIONS if check not in EXPENSIVE or name == "checkpointed"],
)
def test_adaptive_steps_conform_on_a_flat_manifold(options, check):
    make = lambda bound: OnFlat(GeodesicDopri5(bound, bound, **OPTIONS[options]))
    check_solver(make, order=5, adaptive=True, checks=[check])


@pytest.mark.parametrize("per_sample", [True, False])
def test_errors_follow_the_tolerance_on_curved_manifolds(per_sample, generator):
    group = SO3()
    for manifold, field, exact in ((SPHERE, swirl, swirled), (group, spin, spun)):
        x0 = manifold.uniform((3,), generator=generator, dtype=torch.float64)
        for t0, t1, start, end in ((0.0, 1.0, x0, exact(x0, 1.0)), (1.0, 0.0, exact(x0, 1.0), x0)):
            errors = []
            for bound in (1e-5, 1e-8):
                solver = GeodesicDopri5(bound, 0.0, per_sample=per_sample)
                solution = solver.solve(field, start, t0, t1, manifold=manifold, at=[0.4])
                assert solution.success.all()
                errors.append(manifold.dist(solution.y, end).max().item())
                assert manifold.dist(solution.trajectory[0], exact(x0, 0.4)).max() < 100 * bound
                assert manifold.deviation(solution.y).max() < 1e-14
                assert solution.stats.nfe <= 2 + 6 * solution.stats.steps.max() + 1
            assert 0.6 < math.log(errors[0] / errors[1]) / math.log(1e3) < 1.4
            assert errors[1] < 1e-6


def test_steps_are_those_in_the_euclidean_space_for_unit_states():
    field = lambda t, y: -y * (1 + t.unsqueeze(1))
    y0 = torch.ones(2, 1, dtype=torch.float64)
    flat = OnFlat(GeodesicDopri5(0.0, 1e-6, first_step=0.1)).solve(field, y0, 0.0, 1.0)
    plain = Dopri5(0.0, 1e-6, first_step=0.1).solve(field, y0, 0.0, 1.0)
    assert torch.allclose(flat.y, plain.y, atol=1e-14)
    assert torch.equal(flat.stats.steps, plain.stats.steps)


@pytest.mark.parametrize("gradient", [Backprop(), Checkpointed()])
@pytest.mark.parametrize("per_sample", [True, False])
def test_gradients_are_those_of_finite_differences(gradient, per_sample, generator):
    rate = torch.tensor([0.3, -1.4], dtype=torch.float64, requires_grad=True)

    def end(x0, rate):
        field = lambda t, x, rate: (swirl(t, x) * rate.unsqueeze(1), {"q": x[:, 0] * rate})
        solver = GeodesicDopri5(1e-7, 1e-7, per_sample=per_sample, gradient=gradient)
        s = solver.solve(
            field, SPHERE.project(x0), 0.0, 0.2, args=(rate,), manifold=SPHERE, quadratures={"q": None}, at=[0.1]
        )
        return s.y, s.quadratures["q"], s.trajectory

    x0 = SPHERE.uniform((2,), generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(end, (x0, rate), eps=1e-4, atol=1e-5, fast_mode=True)


def test_failed_samples_do_not_stop_the_others():
    bad = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    x0 = SPHERE.project(torch.tensor([[1.0, 2.0, 0.5], [1.0, 0.0, 1.0], [0.0, 1.0, 1.0]], dtype=torch.float64))
    poisoned = lambda t, x, bad: torch.where(((bad > 0) & (t > 0.5)).unsqueeze(1), torch.nan, swirl(t, x))
    solution = GeodesicDopri5(1e-6, 1e-6).solve(poisoned, x0, 0.0, 1.0, args=(bad,), manifold=SPHERE)
    assert solution.success.tolist() == [True, False, True]
    assert SPHERE.dist(solution.y, swirled(x0, 1.0))[[0, 2]].max() < 1e-5
    assert 0.45 < solution.stats.reached[1] <= 0.5
