"""What sets the steps: controllers, bounds, parts, policies; and what an attempt costs."""

import math

import pytest
import torch

from cflow.solvers import (
    PID,
    Adaptive,
    Backprop,
    Bosh3,
    Checkpointed,
    Dopri5,
    Dopri8,
    Status,
    Tolerance,
    Tsit5,
)
from cflow.testing.solvers.operations import Operations

METHODS = (Bosh3, Dopri5, Tsit5, Dopri8)
both_modes = pytest.mark.parametrize("per_sample", [True, False])


def oscillator(t, y):
    x, v = y.unbind(1)
    return torch.stack((v, -x), 1)


@pytest.mark.parametrize("method", [Bosh3, Dopri5, Tsit5])
def test_the_continuous_extension_has_its_order(float64, method):
    """One step over h, and the state inside it: the error falls by 4^(order + 1) when h is divided by four."""
    errors = []
    for h in (0.1, 0.025):
        solver = method(1e6, 1e6, first_step=1.0)
        field = lambda t, y: torch.sin(2 * y) + torch.cos(3 * t)[:, None]
        y0 = torch.tensor([[0.3], [1.0]])
        solution = solver.solve(field, y0, 0.0, h, at=[0.4 * h])
        assert solution.stats.steps.tolist() == [1, 1]
        exact = Dopri8(1e-13, 1e-13).solve(field, y0, 0.0, 0.4 * h).y
        errors.append((solution.trajectory[0] - exact).abs().max().item())
    assert math.log(errors[0] / errors[1], 4) == pytest.approx(method.tableau.dense_order + 1, abs=0.6)


@pytest.mark.parametrize("method", METHODS)
@both_modes
def test_checkpointed_gradients_are_those_of_backprop(float64, generator, method, per_sample):
    weight = torch.randn(3, 3, generator=generator).requires_grad_()
    rate = (4 * torch.rand(7, 1, generator=generator)).requires_grad_()
    y0, a0 = torch.randn(7, 3, generator=generator).requires_grad_(), torch.randn(7, generator=generator)

    def field(t, y, rate):
        slope = torch.tanh(y[0] @ weight * rate + torch.cos(5 * t)[:, None])
        return (slope, -y[1] * rate[:, 0]), {"energy": slope.square().sum(1)}

    found = []
    for gradient in (Backprop(), Checkpointed()):
        solution = method(1e-5, 1e-5, per_sample=per_sample, gradient=gradient).solve(
            field, (y0, a0), 0.0, 1.0, args=(rate,), params=(weight,), quadratures={"energy": Tolerance(1e-4, 1e-4)},
            at=[0.0, 0.2, 0.2, 0.55, 0.9, 1.0],
        )  # fmt: skip
        states = solution.trajectory[0] * torch.arange(6)[:, None, None]
        loss = solution.y[0].square().sum() + solution.quadratures["energy"].sin().sum() + states.sum()
        loss = loss + solution.y[1].sum() + solution.trajectory[1].square().sum()
        found.append(torch.autograd.grad(loss, (y0, rate, weight)))
    assert per_sample <= bool((solution.stats.rejected > 0).any())
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_the_tape_holds_the_states_of_accepted_steps_alone(float64):
    field = lambda t, y, rate: -rate * y
    rate = torch.tensor([[40.0], [0.5]], requires_grad=True)
    solver = Dopri5(1e-8, 1e-10, first_step=1.0, gradient=Checkpointed())
    calls = []
    counted = lambda t, y, rate: calls.append(len(y)) or field(t, y, rate)
    solution = solver.solve(counted, torch.ones(2, 1), 0.0, 0.5, args=(rate,))
    assert (solution.stats.rejected > 0).any()
    calls.clear()
    (slope,) = torch.autograd.grad(solution.y.sum(), rate)
    torch.testing.assert_close(slope, -0.5 * torch.exp(-0.5 * rate.detach()), rtol=1e-5, atol=1e-9)
    assert len(calls) <= 12 * int(solution.stats.accepted.max())


@both_modes
def test_steps_stay_within_their_bounds(float64, per_sample):
    times = []

    def field(t, y):
        times.append(t[0].item())
        return oscillator(t, y)

    y0 = torch.tensor([[1.0, 0.0]])
    Dopri5(1e-3, 1e-3, per_sample=per_sample, dt_max=0.25, first_step=1.0).solve(field, y0, 0.0, 3.0)
    assert len(times) == 1 + 6 * 12
    lax = Dopri5(1e-12, 1e-12, per_sample=per_sample, dt_min=0.1, on_dt_min="accept")
    solution = lax.solve(oscillator, y0, 0.0, 3.0)
    assert solution.success.all()
    assert solution.stats.accepted.item() == 30
    strict = Dopri5(1e-12, 1e-12, per_sample=per_sample, dt_min=0.1).solve(oscillator, y0, 0.0, 3.0)
    assert strict.status.tolist() == [Status.STEP_TOO_SMALL]
    # Where the tolerance can be met above the bound, it changes nothing.
    free, bound = (
        Dopri5(1e-6, 1e-6, per_sample=per_sample, dt_min=low).solve(oscillator, y0, 0.0, 3.0) for low in (None, 1e-4)
    )
    assert torch.equal(free.y, bound.y)


@both_modes
def test_a_poisoned_field_is_not_accepted_at_the_shortest_step(per_sample):
    field = lambda t, y: torch.where(t > 0.5, torch.nan, 1.0)[:, None] * y
    solver = Dopri5(per_sample=per_sample, dt_min=0.01, on_dt_min="accept")
    solution = solver.solve(field, torch.ones(2, 1), 0.0, 1.0)
    assert solution.status.tolist() == [Status.NON_FINITE] * 2
    assert solution.y.isfinite().all()


@both_modes
def test_failures_raise_where_that_is_asked(per_sample):
    solver = Dopri5(per_sample=per_sample, on_failure="raise")
    with pytest.raises(RuntimeError, match="sample 0 ended with NON_FINITE at t = "):
        solver.solve(lambda t, y: y * torch.nan, torch.ones(2, 1), 0.0, 1.0)


@both_modes
def test_parts_have_tolerances_of_their_own(float64, per_sample):
    """A rough part that is left out of control costs nothing and does not change the others."""

    def field(t, y):
        return {"x": oscillator(t, y["x"]), "rough": 50 * torch.cos(300 * t)[:, None]}

    y0 = {"rough": torch.zeros(2, 1), "x": torch.tensor([[1.0, 0.0], [0.0, 1.0]])}
    steps = {}
    for name, parts in {
        "held": None,
        "free": {"rough": None},
        "loose": {"rough": Tolerance(0.0, 1e3)},
        "tight": {"rough": None, "x": Tolerance(1e-9, 1e-9)},
    }.items():
        solution = Dopri5(1e-5, 1e-5, per_sample=per_sample, parts=parts).solve(field, y0, 0.0, 2.0)
        steps[name] = int(solution.stats.steps.max())
        gap = (solution.y["x"][0, 0] - math.cos(2.0)).abs().item()
        assert gap < (1e-7 if name == "tight" else 1e-3)
    assert max(steps["free"], steps["loose"]) < steps["tight"] < steps["held"]
    with pytest.raises(ValueError, match=r"no part 'y'; choose from \['rough', 'x'\]"):
        Dopri5(parts={"y": None}).solve(field, y0, 0.0, 1.0)
    with pytest.raises(ValueError, match="no part has a tolerance"):
        Dopri5(parts={"x": None, "rough": None}).solve(field, y0, 0.0, 1.0)
    with pytest.raises(ValueError, match="it is one tensor, so use rtol"):
        Dopri5(parts={"x": None}).solve(oscillator, y0["x"], 0.0, 1.0)


def test_a_proportional_gain_rejects_fewer_steps_of_a_stiff_problem(float64):
    stiff = lambda t, y: -300 * (y - torch.cos(t)[:, None])
    plain, pi = (
        Dopri5(1e-5, 1e-5, controller=controller).solve(stiff, torch.ones(1, 1), 0.0, 3.0)
        for controller in (PID(), PID(0.4, 0.3))
    )
    assert plain.success.all()
    assert pi.success.all()
    assert pi.stats.rejected.item() < 0.5 * plain.stats.rejected.item()


@both_modes
def test_controllers_follow_their_formula(float64, per_sample):
    """The second step's length is the first's times safety and the powers of both errors."""
    control = PID(0.5, 0.3, 0.1, safety=0.8, grow=1e6, shrink=1e-6)
    seen = []

    def field(t, y):
        seen.append(t[0].item())
        return torch.sin(3 * y) + torch.cos(5 * t)[:, None]

    Dopri5(1e-2, 1e-2, per_sample=per_sample, first_step=0.05, controller=control).solve(
        field, torch.ones(1, 1), 0.0, 10.0
    )
    # From the second attempt on, k1 is known: six calls each, the first at t + h / 5.
    first, second, third = ((seen[1 + 6 * i + 5] - seen[1 + 6 * i]) / 0.8 for i in range(3))
    tableau = Dopri5.tableau
    y, t, errors = torch.ones(1, 1), 0.0, []
    for h in (first, second):
        slopes = []
        for row, node in zip(tableau.a, tableau.c):
            point = y + h * sum((float(a) * k for a, k in zip(row, slopes)), torch.zeros(1, 1))
            slopes.append(field(torch.tensor([t + float(node) * h]), point))
        new = y + h * sum(float(b) * k for b, k in zip(tableau.b, slopes))
        error = h * sum(float(e) * k for e, k in zip(tableau.error, slopes))
        errors.append((error.abs() / (1e-2 + 1e-2 * torch.maximum(y.abs(), new.abs()))).item())
        y, t = new, t + h
    assert errors[1] <= 1
    powers = control.exponents(5)
    # Errors before the first count as just good enough, safety included.
    before = control.safety ** (-5 / control.integral)
    expected = first * control.safety * errors[0] ** powers[0] * (1 / before) ** (powers[1] + powers[2])
    assert second == pytest.approx(expected, rel=1e-6)
    expected = second * control.safety * errors[1] ** powers[0] * errors[0] ** powers[1] / before ** powers[2]
    assert third == pytest.approx(expected, rel=1e-6)


def test_looking_less_often_changes_no_result(float64):
    rates = torch.logspace(-1, 1.5, 16).unsqueeze(1)
    field = lambda t, y, rate: -rate * y
    often, seldom = (
        Dopri5(1e-7, 1e-7, check_every=every).solve(field, torch.ones(16, 1), 0.0, 1.0, args=(rates,))
        for every in (1, 5)
    )
    torch.testing.assert_close(often.y, seldom.y, rtol=1e-13, atol=1e-15)
    assert torch.equal(often.stats.steps, seldom.stats.steps)
    bad = torch.tensor([0.0, 1.0, 0.0])
    poisoned = lambda t, y, bad: torch.where(((bad > 0) & (t > 0.5)).unsqueeze(1), torch.nan, -y)
    solution = Dopri5(check_every=4).solve(poisoned, torch.ones(3, 2), 0.0, 1.0, args=(bad,))
    assert solution.status.tolist() == [Status.SUCCESS, Status.NON_FINITE, Status.SUCCESS]
    assert solution.y.isfinite().all()
    limited = Dopri5(1e-9, 1e-9, check_every=4, max_steps=6).solve(field, torch.ones(16, 1), 0.0, 1.0, args=(rates,))
    assert limited.stats.steps.max() == 6
    assert limited.status.tolist().count(Status.MAX_STEPS) > 4
    assert set(limited.stats.steps[limited.status == Status.MAX_STEPS].tolist()) == {6}


@pytest.mark.parametrize(("per_sample", "budget"), [(False, 30), (True, 45)])
def test_an_attempt_keeps_to_its_budget_of_operations(per_sample, budget):
    totals = []
    for steps in (5, 6):
        solver = Dopri5(max_steps=steps, per_sample=per_sample, first_step=1e-3)
        with torch.no_grad(), Operations() as operations:
            solver.solve(lambda t, y: torch.sin(y), torch.randn(64, 8), 0.0, 1e3)
        totals.append((operations.counts, operations.reads))
    spent = totals[1][0] - totals[0][0]
    assert spent["sin"] == 6
    assert spent.total() - 6 <= budget, spent
    assert totals[1][1] - totals[0][1] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dt_min": -1.0}, "step length is positive"),
        ({"dt_max": 0.0}, "step length is positive"),
        ({"dt_min": 0.2, "dt_max": 0.1}, "swap them"),
        ({"on_dt_min": "ignore"}, "unknown value; pass 'stop' or 'accept'"),
        ({"on_failure": "warn"}, "unknown value; pass"),
        ({"check_every": 0}, "at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Dopri5(**options)


def test_objects_are_wanted_for_options():
    with pytest.raises(TypeError, match=r"pass solvers\.PID\(0\.4, 0\.3\)"):
        Dopri5(controller="pi")
    with pytest.raises(TypeError, match=r"pass solvers\.Backprop\(\) or solvers\.Checkpointed\(\)"):
        Dopri5(gradient="checkpointed")
    for options, message in (({"integral": 0.0}, "integral > 0"), ({"grow": 0.5}, "1 < grow")):
        with pytest.raises(ValueError, match=message):
            PID(**options)
    assert issubclass(Tsit5, Adaptive)


# Where samples wait for each other, rest, or begin at the edge of what numbers can tell apart


@pytest.mark.parametrize("controller", [PID(), PID(0.4, 0.3)], ids=["integral", "proportional"])
@pytest.mark.parametrize("method", METHODS)
def test_outputs_leave_samples_independent(float64, method, controller):
    rates = torch.tensor([[1.0], [30.0]])
    solve = lambda start, **options: method(1e-6, 1e-6, controller=controller, **options).solve(
        lambda t, y, rate: -rate * y, torch.ones(len(start), 1), 0.0, 1.0, args=(start,), at=[0.5, 0.75]
    )
    both = solve(rates)
    for row in range(2):
        alone = solve(rates[row, None])
        for name in ("steps", "accepted", "rejected"):
            assert getattr(both.stats, name)[row] == getattr(alone.stats, name)
        torch.testing.assert_close(both.y[row, None], alone.y, rtol=1e-12, atol=1e-14)
    limit = int(both.stats.steps[0])
    short = solve(rates, max_steps=limit)
    assert short.status.tolist() == [Status.SUCCESS, Status.MAX_STEPS]
    assert short.stats.steps.tolist() == [limit, limit]
    assert solve(rates, max_steps=3).status.tolist()[1] == Status.MAX_STEPS


@pytest.mark.parametrize("method", METHODS)
@both_modes
def test_a_field_that_is_zero_is_crossed_in_few_steps(method, per_sample):
    solver = method(controller=PID(0.4, 0.3, 0.1), per_sample=per_sample, max_steps=20)
    solution = solver.solve(lambda t, y: 0 * y, torch.ones(2, 1), 0.0, 1.0)
    assert solution.success.all()


def test_a_method_whose_last_stage_is_not_at_the_end(float64):
    """Fehlberg's 4(5): the slope at the end is asked at the end, not at the last node."""
    from cflow.solvers.tableau import Tableau, _fractions, _rows

    fehlberg = Tableau(
        "fehlberg",
        a=_rows(
            "", "1/4", "3/32 9/32", "1932/2197 -7200/2197 7296/2197", "439/216 -8 3680/513 -845/4104",
            "-8/27 2 -3544/2565 1859/4104 -11/40",
        ),
        b=_fractions("25/216 0 1408/2565 2197/4104 -1/5 0"),
        c=_fractions("0 1/4 3/8 12/13 1 1/2"),
        order=4,
        error=_fractions("-1/360 0 128/4275 2197/75240 -1/50 -2/55"),
        embedded_order=5,
    )  # fmt: skip
    kind = type("Fehlberg", (Adaptive,), {"tableau": fehlberg, "__module__": __name__})
    for per_sample in (True, False):
        solution = kind(1e-6, 1e-6, per_sample=per_sample).solve(
            lambda t, y: torch.cos(5 * t)[:, None] * y, torch.ones(1, 1), 0.0, 2.0
        )
        assert solution.y.item() == pytest.approx(math.exp(math.sin(10.0) / 5), rel=1e-5)
        assert solution.stats.steps.item() < 40


@both_modes
def test_steps_are_never_shorter_than_the_clock_can_tell(per_sample):
    decay = lambda t, y: -y
    tiny = Dopri5(first_step=1e-9, max_steps=100, per_sample=per_sample).solve(decay, torch.ones(1, 1), 1.0, 2.0)
    assert tiny.success.all()
    far = Dopri5(dt_max=1e-3, max_steps=200, per_sample=per_sample).solve(decay, torch.ones(1, 1), 1e5, 1e5 + 0.5)
    assert far.success.all()
    with pytest.raises(ValueError, match=r"are equal in torch\.float32"):
        Dopri5(per_sample=per_sample).solve(decay, torch.ones(1, 1), 1e6, 1e6 + 0.01)


@both_modes
def test_a_sample_that_fails_at_the_start_spoils_no_gradient_of_the_tape(float64, per_sample):
    theta = torch.tensor(1.0, requires_grad=True)
    solver = Dopri5(1e-6, 1e-6, gradient=Checkpointed(), per_sample=per_sample)
    solution = solver.solve(lambda t, y: theta / y, torch.tensor([[0.0], [1.0]]), 0.0, 1.0)
    (slope,) = torch.autograd.grad(solution.y[1].sum(), theta)
    assert slope.item() == pytest.approx(3**-0.5, rel=1e-5)


def test_output_times_cost_the_tape_nothing(float64):
    calls = []
    field = lambda t, y, rate: calls.append(len(y)) or -rate * y
    counts = []
    for at in ([], [0.31, 0.77]):
        rate = torch.ones(1, 1, requires_grad=True)
        solver = Dopri8(1e-6, 1e-6, dt_max=0.1, gradient=Checkpointed())
        solution = solver.solve(field, torch.ones(1, 1), 0.0, 1.0, args=(rate,), at=at)
        calls.clear()
        torch.autograd.grad(solution.y.sum() + solution.trajectory.sum(), rate)
        counts.append(len(calls) / int(solution.stats.accepted))
    assert counts[1] == counts[0]


def test_forward_mode_passes_through_a_solve(float64):
    y0, tangent = torch.ones(2, 1), torch.tensor([[1.0], [-2.0]])
    solve = lambda y: Dopri5(1e-8, 1e-8).solve(lambda t, y: -y, y, 0.0, 1.0).y
    for mode in (torch.no_grad(), torch.enable_grad()):
        with mode:
            _, slope = torch.func.jvp(solve, (y0,), (tangent,))
        torch.testing.assert_close(slope, tangent * math.exp(-1.0), rtol=1e-6, atol=0)


def test_an_end_in_the_precision_of_a_tensor_of_times_is_the_end():
    times = torch.tensor([0.0, 0.05, 0.1])
    solution = Dopri5().solve(lambda t, y: -y, torch.ones(1, 1), 0.0, 0.1, at=times)
    assert torch.equal(solution.trajectory[-1], solution.y)


def test_bounds_are_objects():
    field = lambda t, y: ({"a": -y["a"]}, {"sum": y["a"].sum(1)})
    y0 = {"a": torch.ones(2, 1)}
    with pytest.raises(TypeError, match=r"pass Tolerance\(1e-3, 1e-3\)"):
        Dopri5(parts={"a": 1e-3})
    with pytest.raises(TypeError, match=r"pass Tolerance\(1e-5, 1e-5\)"):
        Dopri5().solve(field, y0, 0.0, 1.0, quadratures={"sum": 1e-3})
    with pytest.raises(TypeError, match="integrand 'sum' as a float"):
        Dopri5().solve(lambda t, y: ({"a": -y["a"]}, {"sum": 1.0}), y0, 0.0, 1.0, quadratures={"sum": None})
