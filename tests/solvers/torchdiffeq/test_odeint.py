import pytest
import torch
import torchdiffeq
from torch import nn

from cflow.solvers import METHODS, odeint, odeint_adjoint

ADAPTIVE = ["dopri5", "dopri8", "bosh3"]
FIXED = ["euler", "midpoint", "heun2", "heun3", "rk4"]
FOREIGN = ["adaptive_heun", "fehlberg2", "explicit_adams", "implicit_adams", "fixed_adams", "scipy_solver"]
TIMES = torch.linspace(0, 1, 11, dtype=torch.float64)


def field(t, y):
    return torch.stack((y[1] * torch.cos(t), -y[0] + t * y[1]))


def state():
    return torch.tensor([[1.0, 0.3], [-0.5, 2.0]], dtype=torch.float64)


def reference(t):
    return torchdiffeq.odeint(field, state(), t, rtol=1e-12, atol=1e-12, method="dopri8", options={"step_t": t})


@pytest.mark.parametrize("method", [*ADAPTIVE, "tsit5"])
@pytest.mark.parametrize("turned", [False, True])
def test_adaptive_methods_reach_what_was_asked(method, turned):
    t = TIMES.flip(0) if turned else TIMES
    y = odeint(field, state(), t, method=method, rtol=1e-7, atol=1e-9)
    assert y.shape == (11, 2, 2)
    torch.testing.assert_close(y, reference(t), rtol=1e-6, atol=1e-6)
    assert torch.equal(y[0], state())


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("options", [None, {"step_size": 0.05}])
@pytest.mark.parametrize("turned", [False, True])
def test_grids_give_torchdiffeqs_numbers(method, options, turned):
    t = TIMES.flip(0) if turned else TIMES
    ours = odeint(field, state(), t, method=method, options=options)
    theirs = torchdiffeq.odeint(field, state(), t, method=method, options=options)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_grid_of_ones_own_gives_torchdiffeqs_numbers():
    options = {"grid_constructor": lambda f, y0, t: torch.linspace(0, 1, 31, dtype=torch.float64) ** 2}
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    ours, theirs = (solve(field, state(), t, method="rk4", options=options) for solve in (odeint, torchdiffeq.odeint))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [0.1, 0.3, 0.7, 2.0])
def test_a_step_size_that_does_not_divide_the_interval(size):
    seen = []
    f = lambda t, y: seen.append(t.item()) or -y
    odeint(f, torch.ones((), dtype=torch.float64), [0.3, 1.2], method="euler", options={"step_size": size})
    wanted = {0.1: 9, 0.3: 3, 0.7: 2, 2.0: 1}[size]
    assert len(seen) == wanted
    assert seen == pytest.approx([0.3 + size * step for step in range(wanted)])


@pytest.mark.parametrize("method", FOREIGN)
def test_torchdiffeqs_other_methods_go_through_the_adapter(method):
    tolerance = {"rtol": 1e-6, "atol": 1e-8}
    y = odeint(field, state(), TIMES, method=method, **tolerance)
    torch.testing.assert_close(y, reference(TIMES), rtol=1e-3, atol=1e-3)
    if "adams" in method:
        theirs = torchdiffeq.odeint(field, state(), TIMES, method=method, **tolerance)
        torch.testing.assert_close(y, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(), (1,), (3, 1, 2), (0, 2)])
def test_states_of_any_shape(shape):
    y0 = torch.full(shape, 2.0, dtype=torch.float64)
    seen = set()
    f = lambda t, y: seen.add((t.shape, y.shape)) or -y
    for method in ("dopri5", "rk4"):
        y = odeint(f, y0, TIMES, method=method)
        assert y.shape == (11, *shape)
        torch.testing.assert_close(y[-1], y0 * torch.exp(torch.tensor(-1.0)).double(), rtol=1e-4, atol=0)
    assert seen == {(torch.Size([]), torch.Size(shape))}


def test_tuples_of_states():
    y0 = (state(), torch.tensor(1.0, dtype=torch.float64))
    f = lambda t, y: (field(t, y[0]), -y[1] * y[0].square().sum())
    for method in ("dopri5", "rk4", "fehlberg2"):
        ours, theirs = (
            solve(f, y0, TIMES, method=method, rtol=1e-6, atol=1e-8) for solve in (odeint, torchdiffeq.odeint)
        )
        assert isinstance(ours, tuple)
        assert [part.shape for part in ours] == [(11, 2, 2), (11,)]
        torch.testing.assert_close(ours, tuple(theirs), rtol=1e-4, atol=1e-4)


def test_one_time_gives_the_start():
    assert torch.equal(odeint(field, state(), [0.5]), state()[None])
    assert [part.shape for part in odeint(lambda t, y: y, (state(), state()[0]), [0.5])] == [(1, 2, 2), (1, 2)]


def test_the_usual_single_precision_call_works():
    net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
    for t in (torch.linspace(0, 1, 5), torch.linspace(0, 25, 20)):
        ours, theirs = (solve(lambda t, y: net(y), torch.ones(20, 1, 2), t) for solve in (odeint, torchdiffeq.odeint))
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", [*ADAPTIVE, *FIXED, *FOREIGN])
@pytest.mark.parametrize("t", [[0.0, 0.37, 1.0], [1.0, 0.6, 0.0]])
def test_the_field_is_asked_inside_the_times_only(method, t):
    seen = []
    f = lambda t, y: seen.append(t.item()) or 0.3 * torch.cos(t) * y
    odeint(f, torch.ones(2, dtype=torch.float64), t, method=method, rtol=1e-4, atol=1e-4)
    assert min(seen) >= 0.0
    assert max(seen) <= 1.0


def test_the_end_is_more_accurate_than_torchdiffeqs():
    f, y0, t = lambda t, y: -2 * y * torch.cos(3 * t), torch.ones(1, dtype=torch.float64), [0.0, 1.0]
    exact = torch.exp(-2 * torch.sin(torch.tensor(3.0, dtype=torch.float64)) / 3)
    tight = {"rtol": 1e-8, "atol": 1e-8, "method": "dopri8"}
    ours = (odeint(f, y0, t, **tight)[-1] - exact).abs()
    theirs = (torchdiffeq.odeint(f, y0, torch.tensor(t, dtype=torch.float64), **tight)[-1] - exact).abs()
    assert ours < 1e-7 < theirs


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()

    def forward(self, t, y):
        return self.net(y) * torch.cos(t)


@pytest.mark.parametrize("method", ["dopri5", "rk4", "fehlberg2"])
@pytest.mark.parametrize("t", [[0.0, 0.4, 1.0], [1.0, 0.0]])
def test_the_adjoint_gives_the_gradient_of_odeint(method, t):
    net, y0 = Net(), state().requires_grad_()
    wanted = [y0, *net.parameters()]

    def gradients(solve, **more):
        y = solve(net, y0, t, method=method, rtol=1e-7, atol=1e-9, **more)
        return torch.autograd.grad(y.square().sum() + y[0].sum(), wanted)

    plain = gradients(odeint)
    near = 1e-10 if method != "fehlberg2" else 1e-3  # of order two, and the equation is another one
    for exact in (gradients(odeint_adjoint), gradients(odeint_adjoint, adjoint_params=net.parameters())):
        for one, other in zip(exact, plain):
            torch.testing.assert_close(one, other, rtol=near, atol=near)


def test_settings_of_a_backward_solve_are_for_methods_that_have_one():
    net = Net()
    with pytest.raises(ValueError, match="no backward solve; omit it"):
        odeint_adjoint(net, state(), [0.0, 1.0], adjoint_rtol=1e-3)
    more = {"adjoint_rtol": 1e-6, "adjoint_atol": 1e-8, "adjoint_options": {"norm": "seminorm"}}
    odeint_adjoint(net, state(), [0.0, 1.0], method="fehlberg2", rtol=1e-4, atol=1e-4, **more).sum().backward()
    assert net.net[0].weight.grad is not None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"method": "dopri45"}, ValueError, "unknown method; choose from .*dopri5.*scipy_solver"),
        ({"method": "euler_maruyama"}, ValueError, "unknown method"),
        ({"method": "picard"}, ValueError, "unknown method"),
        ({"method": "flow_map"}, ValueError, "unknown method"),
        ({"options": {"norm": torch.max}}, ValueError, "no option 'norm'"),
        ({"options": {"step_t": [0.5]}}, ValueError, "no option 'step_t'"),
        ({"options": {"jump_t": [0.5]}}, ValueError, "no option 'jump_t'"),
        ({"options": {"dtype": torch.float64}}, ValueError, "no option 'dtype'"),
        ({"t": [0.5], "options": {"firststep": 0.1}}, ValueError, "no option 'firststep'"),
        ({"t": [0.5], "method": "dopri45"}, ValueError, "unknown method"),
        ({"rtol": torch.tensor([1e-3, 1e-4])}, ValueError, "expected one rtol per tensor"),
        ({"rtol": (1e-3, 1e-4), "method": "fehlberg2"}, ValueError, "pass a number"),
        ({"options": {"firststep": 0.1}}, ValueError, "no option 'firststep'; it takes first_step"),
        ({"options": {"step_size": 0.1}}, ValueError, "no option 'step_size'"),
        ({"method": "rk4", "options": {"interp": "cubic"}}, ValueError, "it takes step_size, grid_constructor"),
        ({"method": "rk4", "options": {"step_size": 0.1, "grid_constructor": len}}, ValueError, "pass either"),
        ({"method": "rk4", "options": {"step_size": -0.1}}, ValueError, "step length is positive"),
        ({"method": "fehlberg2", "options": {"tol": 1}}, ValueError, "no option 'tol'"),
        ({"t": [0.0, 1.0, 1.0]}, ValueError, "strictly increase"),
        ({"t": [0.0, 1.0, 0.5]}, ValueError, "strictly increase"),
        ({"t": []}, ValueError, "strictly increase"),
        ({"t": [0.0, float("nan")]}, ValueError, "times are finite"),
        ({"t": torch.zeros(2, 2)}, ValueError, "expected one dimension"),
        ({"t": torch.tensor([0.0, 1.0], requires_grad=True)}, ValueError, "times are constants"),
        ({"rtol": (1e-3, 1e-4)}, ValueError, "one tolerance per tensor, but y0 is not a tuple"),
        ({"y0": {"x": torch.ones(2)}}, TypeError, "a tensor or a tuple"),
        ({"func": lambda t, y: y[0]}, ValueError, "return the shape of the state"),
        ({"func": lambda t, y: (y,), "y0": (torch.ones(2), torch.ones(2))}, TypeError, "return a tuple of as many"),
        ({"event_fn": lambda t, y: y}, ValueError, "events are not supported"),
    ],
)
def test_what_cannot_be_honoured_is_refused(change, error, message):
    arguments = {"func": lambda t, y: -y, "y0": torch.ones(2), "t": [0.0, 1.0]} | change
    with pytest.raises(error, match=message):
        odeint(arguments.pop("func"), arguments.pop("y0"), arguments.pop("t"), **arguments)


@pytest.mark.parametrize("method", ["dopri5", "rk4", "fehlberg2"])
@pytest.mark.parametrize("name", ["callback_step", "callback_accept_step", "callback_reject_step_adjoint"])
@pytest.mark.parametrize("solve", [odeint, odeint_adjoint])
def test_callbacks_are_refused_not_dropped(method, name, solve):
    net = Net()
    setattr(net, name, lambda t, y, dt: None)
    for t in ([0.0, 1.0], [0.0]):
        with pytest.raises(ValueError, match=rf"{name}.*use torchdiffeq.{solve.__name__}, or"):
            solve(net, state(), t, method=method)


def test_a_solve_that_fails_raises():
    with pytest.raises(RuntimeError, match="STEP_TOO_SMALL|NON_FINITE"):
        odeint(lambda t, y: y * y, torch.ones(1, dtype=torch.float64), [0.0, 2.0], rtol=1e-6, atol=1e-6)
    with pytest.raises(RuntimeError, match="MAX_STEPS"):
        odeint(lambda t, y: -50 * y, torch.ones(1, dtype=torch.float64), [0.0, 5.0], options={"max_num_steps": 3})
    with pytest.raises(RuntimeError, match="torchdiffeq failed"):
        odeint(lambda t, y: y * y, torch.ones(1, dtype=torch.float64), [0.0, 2.0], method="fehlberg2", rtol=1e-5)


def test_the_shortest_step_is_taken_whatever_its_error():
    seen = []
    f = lambda t, y: seen.append(1) or -50 * y * torch.cos(20 * t)
    y = odeint(f, torch.ones(1, dtype=torch.float64), [0.0, 1.0], rtol=1e-12, atol=1e-12, options={"min_step": 0.05})
    assert y.isfinite().all()
    assert len(seen) <= 2 + 6 * 21


def test_every_method_of_ours_that_needs_no_schedule_is_named():
    from cflow.solvers import Adaptive
    from cflow.solvers.torchdiffeq.options import _OWN

    flat = {name for name, kind in METHODS.items() if issubclass(kind, Adaptive) and not kind.on_manifolds}
    assert flat <= _OWN


def test_torchdiffeqs_defaults_mean_what_they_mean_there():
    nothing = {"first_step": None, "min_step": 0, "max_step": float("inf"), "step_t": None, "jump_t": None}
    factors = {"safety": 0.9, "ifactor": 10.0, "dfactor": 0.2, "max_num_steps": 2**31 - 1}
    given = {
        "method": None,
        "options": nothing | factors,
        "rtol": torch.tensor(1e-7, dtype=torch.float64),
        "event_fn": None,
    }
    for solve, more in ((odeint, {}), (odeint_adjoint, {"adjoint_rtol": None})):
        usual = solve(field, state(), TIMES)
        assert torch.equal(solve(func=field, y0=state(), t=TIMES, **given, **more), usual)
    on_grid = {"step_size": None, "grid_constructor": None, "perturb": False}
    assert torch.equal(
        odeint(field, state(), TIMES, method="rk4", options=on_grid), odeint(field, state(), TIMES, method="rk4")
    )


def test_the_factors_of_a_step_are_honoured():
    def calls(**options):
        seen = []
        odeint(lambda t, y: seen.append(1) or -y, torch.ones(1).double(), [0.0, 1.0], options=options)
        return len(seen)

    usual = calls(first_step=1e-6)
    assert calls(first_step=1e-6, ifactor=2.0) > usual  # steps grow more slowly
    assert calls(first_step=1e-6, safety=0.4) > usual  # steps are shorter
    with pytest.raises(ValueError, match="needs 0 < shrink < 1"):
        calls(dfactor=1.5)


def test_a_tolerance_for_each_tensor_of_a_tuple():
    y0 = (torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    f = lambda t, y: (-y[0], torch.cos(40 * t) * y[1])

    def calls(rtol, atol):
        seen = []
        odeint(lambda t, y: seen.append(1) or f(t, y), y0, [0.0, 1.0], rtol=rtol, atol=atol)
        return len(seen)

    assert calls((1e-8, 1e-8), 1e-8) == calls(1e-8, 1e-8)
    assert calls(1e-8, (1e-8, 1e3)) < calls(1e-8, 1e-8) / 2  # the second is not held to anything


@pytest.mark.parametrize("method", [*ADAPTIVE, *FIXED, "tsit5", "fehlberg2", "scipy_solver"])
def test_complex_states(method):
    y0, rate = torch.tensor([1.0 + 0.5j, -2.0j], dtype=torch.complex128), -0.3 + 2j
    seen = set()
    f = lambda t, y: seen.add((t.dtype, y.dtype, y.shape)) or rate * y
    exact = y0 * torch.exp(torch.tensor(rate) * TIMES[:, None])
    y = odeint(f, y0, TIMES, method=method)
    assert seen == {(torch.float64, torch.complex128, y0.shape)}
    if method in FIXED:
        torch.testing.assert_close(y, torchdiffeq.odeint(f, y0, TIMES, method=method), rtol=1e-12, atol=1e-12)
    else:
        torch.testing.assert_close(y, exact, rtol=1e-4, atol=1e-4)
    pair = odeint(lambda t, y: (rate * y[0], -y[1]), (y0, torch.ones(3).double()), TIMES, method=method)
    assert [part.dtype for part in pair] == [torch.complex128, torch.float64]
    torch.testing.assert_close(pair[0], y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("solve", [odeint, odeint_adjoint])
def test_gradients_of_complex_states(solve):
    y0 = torch.tensor([1.0 + 0.5j, -2.0j], dtype=torch.complex128, requires_grad=True)
    rate = torch.tensor(-0.3 + 2j, dtype=torch.complex128, requires_grad=True)
    end = (
        solve(lambda t, y: rate * y, y0, [0.0, 1.0], adjoint_params=(rate,))[-1]
        if solve is odeint_adjoint
        else (solve(lambda t, y: rate * y, y0, [0.0, 1.0])[-1])
    )
    given = torch.autograd.grad(end.abs().square().sum(), (y0, rate))
    wanted = torch.autograd.grad((y0 * rate.exp()).abs().square().sum(), (y0, rate))
    torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-6)


def test_a_failure_is_an_error_where_torchdiffeq_gives_what_is_not_finite():
    f, y0, t = lambda t, y: y * torch.inf, torch.ones(1, dtype=torch.float64), torch.tensor([0.0, 1.0]).double()
    assert not torchdiffeq.odeint(f, y0, t, method="rk4").isfinite().all()
    with pytest.raises(RuntimeError, match="NON_FINITE"):
        odeint(f, y0, t)


def test_tensors_of_a_tuple_keep_their_dtype_and_times_have_that_of_the_state():
    seen = set()
    f = lambda t, y: seen.add(t.dtype) or (-y[0], -y[1])
    ends = odeint(f, (torch.ones(2), torch.ones(3, dtype=torch.float64)), TIMES)
    assert [part.dtype for part in ends] == [torch.float32, torch.float64]
    odeint(lambda t, y: seen.add(("alone", t.dtype)) or -y, torch.ones(2), TIMES, rtol=1e-4)
    assert seen == {torch.float64, ("alone", torch.float32)}
    far = 1e5 + torch.linspace(0, 1, 3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="STEP_TOO_SMALL"):
        odeint(lambda t, y: -50 * y, torch.ones(2), far, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="return the shape of the state"):
        odeint(lambda t, y: y[None], torch.ones(2), [0.0, 1.0])
