"""One step for the whole batch: the same solution, coupled steps, and failures that leave the others alone."""

import math

import pytest
import torch

from cflow.solvers import Bosh3, Checkpointed, Dopri5, Dopri8, Status, Tolerance, Tsit5

METHODS = (Bosh3, Dopri5, Tsit5, Dopri8)
every_method = pytest.mark.parametrize("method", METHODS)


def swing(t, y):
    return -2 * y * torch.cos(3 * t)[:, None]


def swung(y0, t0, t):
    return y0 * math.exp(-2 / 3 * (math.sin(3 * t) - math.sin(3 * t0)))


@every_method
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.0), (-0.4, 0.7)])
def test_the_solution_is_right_everywhere(float64, method, t0, t1):
    y0 = torch.tensor([[1.0], [-2.0], [0.5]])
    times = [t0, t0, 0.7 * t0 + 0.3 * t1, 0.1 * t0 + 0.9 * t1, t1]
    solution = method(1e-9, 1e-9, per_sample=False).solve(swing, y0, t0, t1, at=times)
    assert solution.success.all()
    assert (solution.stats.reached == t1).all()
    for t, state in zip(times, solution.trajectory):
        torch.testing.assert_close(state, swung(y0, t0, t), rtol=0, atol=1e-7)
    assert torch.equal(solution.trajectory[-1], solution.y)
    assert torch.equal(solution.trajectory[0], y0)


@every_method
def test_all_samples_take_the_same_steps_and_the_field_is_called_inside_only(method):
    seen = []

    def field(t, y, rate):
        seen.append(t)
        assert (t == t[0]).all()
        return -rate * y

    rates = torch.logspace(-1, 1.5, 8).unsqueeze(1)
    solution = method(1e-4, 1e-4, per_sample=False).solve(field, torch.ones(8, 2), 0.1, 0.8, args=(rates,))
    assert (solution.stats.steps == solution.stats.steps[0]).all()
    stages = {Bosh3: 3, Dopri5: 6, Tsit5: 6, Dopri8: 13}[method]
    assert solution.stats.nfe == 2 + stages * int(solution.stats.steps[0]) == len(seen)
    low, high = torch.tensor([0.1, 0.8])
    times = torch.cat(seen)
    assert times.min() >= low
    assert times.max() <= high
    torch.testing.assert_close(solution.y, torch.exp(-0.7 * rates).expand(8, 2), rtol=0, atol=1e-3)


def test_one_sample_is_solved_alike_in_both_modes(float64):
    y0 = torch.tensor([[0.3, -1.0, 2.0]])
    field = lambda t, y: torch.sin(y * 3) + torch.cos(5 * t)[:, None]
    each, joint = (Dopri5(1e-6, 1e-6, per_sample=mode).solve(field, y0, 0.0, 2.0) for mode in (True, False))
    assert torch.equal(each.stats.accepted, joint.stats.accepted)
    torch.testing.assert_close(each.y, joint.y, rtol=1e-12, atol=1e-12)


def test_an_error_is_averaged_over_the_batch_where_it_is_joint(float64):
    rates = torch.tensor([[30.0]] + [[0.01]] * 99)
    field = lambda t, y, rate: -rate * torch.sin(y)
    steps = {}
    for mode in (True, False):
        solution = Dopri5(1e-6, 1e-6, per_sample=mode).solve(field, torch.ones(100, 1), 0.0, 1.0, args=(rates,))
        steps[mode] = int(solution.stats.steps.max())
    # The hard sample's error weighs a tenth of its own: 0.1^(1/5) fewer steps, but never so few as the easy ones take.
    assert 0.5 * steps[True] < steps[False] < steps[True]


@pytest.mark.parametrize("gradient", [None, Checkpointed()])
def test_a_sample_that_fails_is_left_behind(float64, gradient):
    bad = torch.tensor([0.0, 1.0, 0.0])
    field = lambda t, y, bad: torch.where(((bad > 0) & (t > 0.5)).unsqueeze(1), torch.nan, -y)
    y0 = torch.ones(3, 2, requires_grad=gradient is not None)
    options = {} if gradient is None else {"gradient": gradient}
    solver = Dopri5(1e-6, 1e-6, per_sample=False, **options)
    solution = solver.solve(field, y0, 0.0, 1.0, args=(bad,), at=[0.25, 0.75])
    assert solution.status.tolist() == [Status.SUCCESS, Status.NON_FINITE, Status.SUCCESS]
    assert 0.45 < solution.stats.reached[1].item() <= 0.5
    torch.testing.assert_close(solution.y[[0, 2]], torch.full((2, 2), math.exp(-1.0)), rtol=1e-5, atol=0)
    torch.testing.assert_close(solution.trajectory[0], torch.full((3, 2), math.exp(-0.25)), rtol=1e-4, atol=0)
    assert torch.equal(solution.trajectory[1, 1], solution.y[1])  # the last good state stands for later ones
    if gradient is not None:
        (slope,) = torch.autograd.grad(solution.y[[0, 2]].sum(), y0)
        expected = torch.tensor([[1.0], [0.0], [1.0]]).expand(3, 2) * math.exp(-1.0)
        torch.testing.assert_close(slope, expected, rtol=1e-5, atol=0)


def test_limits_end_all(float64):
    stiff = lambda t, y: -1e4 * (y - torch.cos(t)[:, None])
    limited = Dopri5(1e-6, 1e-6, per_sample=False, max_steps=20).solve(stiff, torch.ones(2, 1), 0.0, 1.0)
    assert limited.status.tolist() == [Status.MAX_STEPS] * 2
    assert limited.stats.steps.tolist() == [20, 20]
    assert (limited.stats.reached < 1).all()
    floored = Dopri5(1e-9, 1e-9, per_sample=False, dt_min=0.01).solve(stiff, 2 * torch.ones(2, 1), 0.0, 1.0)
    assert floored.status.tolist() == [Status.STEP_TOO_SMALL] * 2
    dead = Dopri5(per_sample=False).solve(lambda t, y: y * torch.nan, torch.ones(3, 2), 0.0, 1.0, at=[0.5])
    assert dead.status.tolist() == [Status.NON_FINITE] * 3
    assert torch.equal(dead.y, torch.ones(3, 2))


def test_quadratures_and_nested_states(float64):
    def field(t, y):
        return {"x": -y["x"], "aux": (y["x"].sum(1),)}, {"energy": y["x"].square().sum(1)}

    y0 = {"x": torch.ones(4, 2), "aux": (torch.zeros(4),)}
    solution = Tsit5(1e-9, 1e-9, per_sample=False).solve(
        field, y0, 0.0, 1.0, quadratures={"energy": Tolerance(1e-9, 1e-9)}
    )
    torch.testing.assert_close(solution.y["aux"][0], torch.full((4,), 2 * (1 - math.exp(-1))), rtol=0, atol=1e-7)
    torch.testing.assert_close(solution.quadratures["energy"], torch.full((4,), 1 - math.exp(-2)), rtol=0, atol=1e-7)
