from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
import pytest
import scipy.integrate
import torch
from torchdiffeq import odeint

from cflow.registry import configuration, replace
from cflow.solvers import Adaptive, Dopri5, Status, Tableau, Tolerance
from cflow.testing import check_solver

BOSH3 = Tableau(
    "bosh3",
    a=((), (Fraction(1, 2),), (Fraction(0), Fraction(3, 4)), (Fraction(2, 9), Fraction(1, 3), Fraction(4, 9))),
    b=(Fraction(2, 9), Fraction(1, 3), Fraction(4, 9), Fraction(0)),
    c=(Fraction(0), Fraction(1, 2), Fraction(3, 4), Fraction(1)),
    order=3,
    error=(Fraction(-5, 72), Fraction(1, 12), Fraction(1, 9), Fraction(-1, 8)),
    embedded_order=2,
)

HEUN_EULER = Tableau(
    "heun_euler",
    a=((), (Fraction(1),)),
    b=(Fraction(1, 2), Fraction(1, 2)),
    c=(Fraction(0), Fraction(1)),
    order=2,
    error=(Fraction(-1, 2), Fraction(1, 2)),
    embedded_order=1,
)


@dataclass(frozen=True)
class Bosh3(Adaptive):
    tableau: ClassVar[Tableau] = BOSH3


@dataclass(frozen=True)
class HeunEuler(Adaptive):
    tableau: ClassVar[Tableau] = HEUN_EULER


@pytest.mark.parametrize("check", ["interval", "quadratures", "batch", "failures", "sizes", "host reads"])
@pytest.mark.parametrize("method", [Bosh3, HeunEuler])
def test_a_method_is_only_a_tableau(method, check):
    make = lambda tolerance: method(rtol=1e-4, atol=1e-4, max_steps=20_000)
    check_solver(make, order=method.tableau.order, adaptive=True, checks=[check])


def van_der_pol(t, y, mu):
    x, v = y.unbind(-1)
    return torch.stack((v, mu * (1 - x * x) * v - x), -1)


def test_van_der_pol_agrees_with_dop853(float64):
    mus = torch.tensor([0.5, 2.0, 8.0])
    start = torch.tensor([[2.0, 0.0]]).repeat(3, 1)
    times = [1.0, 4.0, 10.0]
    solution = Dopri5(1e-9, 1e-9).solve(van_der_pol, start, 0.0, 10.0, args=(mus,), at=times)
    for row, mu in enumerate(mus.tolist()):
        oracle = scipy.integrate.solve_ivp(
            lambda t, y, mu=mu: [y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]],
            (0.0, 10.0),
            [2.0, 0.0],
            method="DOP853",
            rtol=1e-12,
            atol=1e-12,
            t_eval=times,
        )
        torch.testing.assert_close(solution.trajectory[:, row], torch.from_numpy(oracle.y.T.copy()), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.0)])
def test_linear_network_agrees_with_torchdiffeq_when_that_ends_its_last_step_at_the_end(float64, generator, t0, t1):
    matrix, y0 = torch.randn(3, 3, generator=generator), torch.randn(2, 3, generator=generator)
    solution = Dopri5(1e-8, 1e-8).solve(lambda t, y: torch.sin(y @ matrix + t[:, None]), y0, t0, t1)
    ends = torch.tensor([t0, t1])
    options = {"step_t": ends[1:]}
    oracle = odeint(
        lambda t, y: torch.sin(y @ matrix + t), y0, ends, rtol=1e-10, atol=1e-10, method="dopri5", options=options
    )
    torch.testing.assert_close(solution.y, oracle[-1], rtol=0, atol=1e-7)


def test_cost_is_two_and_six_per_attempt():
    field = lambda t, y: -20 * y * torch.cos(9 * t)[:, None]
    solution = Dopri5().solve(field, torch.ones(1, 1), 0.0, 1.0)
    attempts = solution.stats.steps.item()
    assert attempts > 5
    assert solution.stats.nfe == solution.stats.evaluations == 2 + 6 * attempts
    assert (solution.stats.accepted + solution.stats.rejected).item() == attempts
    given = Dopri5(first_step=0.5).solve(field, torch.ones(1, 1), 0.0, 1.0)
    assert given.stats.nfe == 1 + 6 * given.stats.steps.item()
    assert given.stats.rejected.item() > 0


def test_the_first_step_is_tried_inside_the_interval():
    for t0, t1 in ((0.1, 0.7), (0.7, 0.1)):
        seen = []
        Dopri5().solve(lambda t, y, seen=seen: seen.append(t[0].item()) or 1e-3 * y, torch.ones(1, 2), t0, t1)
        # So slow a field suggests a step beyond the end.
        assert seen[1] == pytest.approx(t1)
        low, high = sorted(torch.tensor([t0, t1]).tolist())
        assert low <= min(seen) <= max(seen) <= high


def test_no_step_grows_right_after_a_rejection(float64):
    seen = []

    def field(t, y):
        seen.append(t.item())
        return torch.sign(torch.sin(9 * t))[:, None] * y

    Dopri5(1e-7, 1e-7).solve(field, torch.ones(1, 1), 0.0, 3.0)
    attempts = [(seen[i], seen[i + 5]) for i in range(2, len(seen), 6)]
    lengths = [(last - first) / 0.8 for first, last in attempts]
    starts = [last - length for (_, last), length in zip(attempts, lengths)]
    recovered = 0
    for i in range(len(starts) - 2):
        rejected = abs(starts[i + 1] - starts[i]) < 1e-12
        accepted = abs(starts[i + 2] - attempts[i + 1][1]) < 1e-12
        if rejected and accepted:
            recovered += 1
            assert lengths[i + 2] <= lengths[i + 1] * (1 + 1e-6)
    assert recovered > 3


def test_finished_samples_are_not_evaluated():
    rates = torch.cat((torch.full((63,), 0.1), torch.tensor([80.0]))).unsqueeze(1)
    widths = []

    def field(t, y, rate):
        widths.append(len(y))
        return -rate * y

    solution = Dopri5(1e-6, 1e-6).solve(field, torch.ones(64, 2), 0.0, 1.0, args=(rates,))
    assert widths[-1] == 1
    assert solution.stats.evaluations == sum(widths) < 0.5 * solution.stats.nfe * 64
    torch.testing.assert_close(solution.y, torch.exp(-rates).expand(64, 2), rtol=0, atol=1e-4)


def test_states_in_every_shape_and_dtype_of_a_batch():
    for shape in ((4,), (4, 3), (4, 2, 3, 3), (4, 0)):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            solution = Dopri5(1e-4, 1e-4).solve(lambda t, y: -y, torch.ones(shape, dtype=dtype), 0.0, 1.0)
            assert (solution.y.shape, solution.y.dtype) == (shape, dtype)
            assert solution.success.all()
            assert (solution.y - 0.3679).abs().sum() < 0.01 * 4 * 18


def test_an_output_does_not_shorten_the_steps_after_it(float64):
    field = lambda t, y: torch.cos(t)[:, None] * y
    y0 = torch.ones(1, 1)
    plain = Dopri5(1e-6, 1e-6).solve(field, y0, 0.0, 4.0)
    cut = Dopri5(1e-6, 1e-6).solve(field, y0, 0.0, 4.0, at=[2.0, 2.0 + 1e-7])
    # Two more steps end at the outputs, and what they leave over may take one more each.
    assert cut.stats.steps.item() <= plain.stats.steps.item() + 4
    torch.testing.assert_close(cut.trajectory[0], torch.exp(torch.sin(torch.tensor([[2.0]]))), rtol=1e-5, atol=0)


def test_rejected_steps_leave_no_trace_in_the_gradient(float64):
    field = lambda t, y, rate: -rate * y
    for first in (1e-3, 1.0):
        rate = torch.tensor([[30.0], [2.0]], requires_grad=True)
        solution = Dopri5(1e-8, 1e-10, first_step=first).solve(field, torch.ones(2, 1), 0.0, 0.5, args=(rate,))
        assert (solution.stats.rejected.sum() > 0) == (first == 1.0)
        (slope,) = torch.autograd.grad(solution.y.sum(), rate)
        torch.testing.assert_close(slope, -0.5 * torch.exp(-0.5 * rate.detach()), rtol=1e-4, atol=1e-7)


def test_an_attempt_that_leaves_the_finite_numbers_does_not_reach_the_gradient(float64):
    # A first step of one carries the state below zero, where the square root is not a number.
    field = lambda t, y, rate: -rate * torch.sqrt(y)
    rate = torch.tensor([[1.5], [0.3]], requires_grad=True)
    solver = Dopri5(1e-8, 1e-10, first_step=1.0)
    solution = solver.solve(field, torch.ones(2, 1), 0.0, 1.2, args=(rate,))
    assert solution.success.all()
    assert solution.stats.rejected[0] > 0
    exact = (1 - 0.6 * rate.detach()) ** 2
    torch.testing.assert_close(solution.y.detach(), exact, rtol=0, atol=1e-7)
    (slope,) = torch.autograd.grad(solution.y.sum(), rate)
    torch.testing.assert_close(slope, -1.2 * (1 - 0.6 * rate.detach()), rtol=1e-4, atol=1e-6)


def test_gradients_pass_through_dropped_samples(float64):
    rate = torch.logspace(-1, 1.5, 8).unsqueeze(1).requires_grad_()
    y0 = torch.ones(8, 1, requires_grad=True)
    solution = Dopri5(1e-8, 1e-10).solve(lambda t, y, rate: -rate * y, y0, 0.0, 1.0, args=(rate,), at=[0.5, 1.0])
    assert solution.stats.evaluations < 0.7 * 8 * solution.stats.nfe
    slopes = torch.autograd.grad(solution.trajectory[0].sum() + solution.y.sum(), (y0, rate))
    half, whole = torch.exp(-0.5 * rate), torch.exp(-rate)
    torch.testing.assert_close(slopes[0], (half + whole).detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(slopes[1], (-0.5 * half - whole).detach(), rtol=1e-4, atol=1e-6)


def test_a_sample_that_starts_at_a_pole_fails_alone():
    start = torch.tensor([[0.0], [1.0]])
    solution = Dopri5().solve(lambda t, y: 1 / y, start, 0.0, 1.0, at=[0.5])
    assert solution.status.tolist() == [Status.NON_FINITE, Status.SUCCESS]
    assert torch.equal(solution.y[0], start[0])
    assert solution.stats.steps[0] == 0
    assert solution.y[1].item() == pytest.approx(3**0.5, rel=1e-4)


def test_a_state_at_rest_at_zero_has_no_error_even_without_an_absolute_tolerance():
    start = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    solution = Dopri5(rtol=1e-4, atol=0.0).solve(lambda t, y: -y, start, 0.0, 1.0)
    assert solution.success.all()
    torch.testing.assert_close(solution.y, start * torch.exp(torch.tensor(-1.0)), rtol=1e-3, atol=0)


def test_a_batch_of_failures_ends():
    solution = Dopri5().solve(lambda t, y: y * torch.nan, torch.ones(3, 2), 0.0, 1.0, at=[0.2, 1.0])
    assert solution.status.tolist() == [Status.NON_FINITE] * 3
    assert torch.equal(solution.y, torch.ones(3, 2))


def test_a_discontinuity_is_stepped_over():
    solution = Dopri5(1e-6, 1e-6).solve(lambda t, y: torch.sign(t - 0.3)[:, None] * y, torch.ones(2, 1), 0.0, 1.0)
    assert solution.success.all()
    # The slope at a step's start weighs little in the error estimate: a jump right after it may pass unseen.
    assert solution.y[0].item() == pytest.approx(np.exp(0.4), rel=1e-3)


def test_a_tolerance_below_rounding_ends_with_a_status_in_finite_time():
    field = lambda t, y: torch.sin(50 * y) + torch.cos(40 * t)[:, None]
    solution = Dopri5(0.0, 1e-14, max_steps=500).solve(field, torch.ones(2, 1), 0.0, 1.0)
    assert set(solution.status.tolist()) <= {Status.STEP_TOO_SMALL, Status.MAX_STEPS}


def test_a_quadrature_without_tolerance_takes_no_part_in_acceptance():
    field = lambda t, y: (torch.zeros_like(y), {"peak": torch.exp(-0.5 * ((t - 0.37) / 0.02) ** 2)})
    start = torch.ones(1, 1)
    free = Dopri5().solve(field, start, 0.0, 1.0, quadratures={"peak": None})
    held = Dopri5().solve(field, start, 0.0, 1.0, quadratures={"peak": Tolerance(0.0, 1e-6)})
    assert free.stats.steps.item() < 10 < held.stats.steps.item()
    assert held.quadratures["peak"].item() == pytest.approx(0.02 * np.sqrt(2 * np.pi), abs=1e-5)


def test_long_float32_solves_keep_their_clock():
    # 0.01 is no float32: a clock that adds the rounded step while the state moves by the exact one would drift.
    solution = Dopri5(1e-7, 1e-7).solve(lambda t, y: torch.ones_like(y), torch.zeros(1, 1), 0.0, 30.0, at=[10.0])
    assert solution.trajectory[0].item() == pytest.approx(10.0, abs=1e-5)
    assert solution.y.item() == pytest.approx(30.0, abs=1e-5)


def test_it_runs_in_inference_mode():
    with torch.inference_mode():
        solution = Dopri5().solve(lambda t, y, c: -c * y, torch.ones(5, 2), 0.0, 1.0, args=(torch.ones(5, 1),))
    assert torch.allclose(solution.y, torch.tensor(0.36788), atol=1e-4)


def test_configuration_rebuilds_it():
    solver = Dopri5(1e-3, 1e-4, max_steps=7, first_step=0.1)
    assert Dopri5(**configuration(solver)) == solver
    assert replace(solver, max_steps=8).max_steps == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": -1.0}, "tolerances are finite"),
        ({"rtol": 0.0, "atol": 0.0}, "tolerances are finite"),
        ({"atol": float("nan")}, "tolerances are finite"),
        ({"max_steps": 0}, "at least 1"),
        ({"first_step": 0.0}, "positive"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Dopri5(**options)


def test_bad_tolerances_of_quadratures_are_refused():
    with pytest.raises(ValueError, match="tolerances are finite"):
        Tolerance(rtol=0.0, atol=0.0)
