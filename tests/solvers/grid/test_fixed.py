import pytest
import torch

from cflow import ContinuousFlow
from cflow.bases import Normal
from cflow.fields import MLP
from cflow.paths import Linear
from cflow.registry import configuration, lookup, replace
from cflow.solvers import RK4, Backprop, Euler, Heun, Midpoint, Ralston, Status


def decay(t, y):
    return -y


@pytest.mark.parametrize(("method", "calls"), [(Euler, 1), (Midpoint, 2), (Heun, 2), (Ralston, 2), (RK4, 4)])
def test_cost_is_stages_times_steps(method, calls):
    solution = method(7).solve(decay, torch.ones(3, 2), 0.0, 1.0)
    assert solution.stats.nfe == 7 * calls
    assert solution.stats.evaluations == 7 * calls * 3
    assert solution.stats.steps.tolist() == solution.stats.accepted.tolist() == [7, 7, 7]
    assert solution.stats.rejected.tolist() == [0, 0, 0]


@pytest.mark.parametrize("method", [Euler, Midpoint, Heun, Ralston, RK4])
def test_a_budget_of_calls_is_met(method):
    solution = method(nfe=24).solve(decay, torch.ones(3, 2), 0.0, 1.0)
    assert solution.stats.nfe == 24
    assert torch.equal(solution.y, method(24 // method.calls_per_step()).solve(decay, torch.ones(3, 2), 0.0, 1.0).y)


def test_a_budget_of_calls_serves_a_flow_whose_ends_are_crossed_in_closed_form(generator):
    flow = ContinuousFlow(MLP(2), Normal(2), path=Linear(predict="x1"))
    noise = torch.randn(4, 2, generator=generator)
    for one, other in ((Heun(nfe=12), Heun(6)), (Euler(nfe=1), Euler(1))):
        end, same = (flow.transport(noise, 0.0, 1.0, solver=solver).y for solver in (one, other))
        assert torch.equal(end, same)


def test_euler_is_the_plain_loop():
    generator = torch.Generator().manual_seed(0)
    y0, matrix = torch.randn(4, 3, generator=generator), torch.randn(3, 3, generator=generator)
    x = y0
    for step in range(10):
        x = x + 0.1 * torch.tanh(x @ matrix + step / 10)
    solution = Euler(10).solve(lambda t, y: torch.tanh(y @ matrix + t[:, None]), y0, 0.0, 1.0)
    torch.testing.assert_close(solution.y, x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("t0", "t1", "nodes"),
    [
        (0.0, 1.0, [0.0, 0.1, 0.5, 0.9, 1.0]),
        (1.0, 0.0, [1.0, 0.9, 0.5, 0.1, 0.0]),
        (0.0, 0.8, [0.0, 0.1, 0.5, 0.8]),
        (0.5, 0.05, [0.5, 0.1, 0.05]),
        (0.6, 0.7, [0.6, 0.7]),
    ],
)
def test_one_grid_serves_every_interval(t0, t1, nodes):
    solver = Euler(grid=(0.0, 0.1, 0.5, 0.9, 1.0))
    assert solver.nodes(t0, t1) == nodes
    seen = []
    solver.solve(lambda t, y: seen.append(t[0].item()) or -y, torch.ones(1, dtype=torch.float64), t0, t1)
    assert seen == nodes[:-1]


def test_a_stage_at_the_end_of_a_step_is_at_the_next_node_to_the_last_bit(generator):
    ends = (torch.rand(50, 2, generator=generator, dtype=torch.float64) - torch.tensor([0.7, 0.0])).tolist()
    assert any(start + (end - start) != end for start, end in ends)
    for start, end in ends:
        seen = []
        field = lambda t, y, seen=seen: seen.append(t[0].item()) or -y
        Heun(1).solve(field, torch.ones(1, dtype=torch.float64), start, end)
        assert seen == [start, end]


def test_output_times_become_nodes_and_equal_ones_do_not_double_steps():
    state = torch.ones(1, dtype=torch.float64)
    at_nodes = Euler(10).solve(decay, state, 0.0, 1.0, at=[0.1, 0.3, 0.3, 0.7])
    assert at_nodes.stats.nfe == 10
    torch.testing.assert_close(
        at_nodes.trajectory[:, 0], 0.9 ** torch.tensor([1.0, 3.0, 3.0, 7.0], dtype=torch.float64)
    )
    between = Euler(10).solve(decay, state, 0.0, 1.0, at=[0.25])
    assert between.stats.nfe == 11
    torch.testing.assert_close(between.trajectory, torch.tensor([[0.81 * 0.95]], dtype=torch.float64))


def test_half_precision_states_are_kept_in_single_precision():
    seen = set()

    def field(t, y):
        seen.add((t.dtype, y.dtype))
        return -y

    start = torch.ones(2, 3, dtype=torch.bfloat16)
    solution = RK4(1000).solve(field, start, 0.0, 1.0, quadratures=None)
    assert seen == {(torch.float32, torch.bfloat16)}
    assert solution.y.dtype == torch.bfloat16
    # Steps of a thousandth are lost when a bfloat16 state of size one is added to.
    assert abs(solution.y[0, 0].item() - 0.3679) < 0.003


def test_half_precision_slopes_do_not_lower_the_state():
    field = lambda t, y: (-y).to(torch.bfloat16)
    solution = RK4(10).solve(field, torch.ones(2, 3), 0.0, 1.0)
    assert solution.y.dtype == torch.float32
    field = lambda t, y: (-y).double()
    assert RK4(10).solve(field, torch.ones(2, 3), 0.0, 1.0).y.dtype == torch.float32


def test_parts_of_two_dtypes_keep_theirs():
    y0 = (torch.ones(2), torch.ones(2, dtype=torch.float64))
    seen = []
    solution = Heun(4).solve(lambda t, y: seen.append(t.dtype) or (-y[0], -y[1]), y0, 0.0, 1.0)
    assert [part.dtype for part in solution.y] == [torch.float32, torch.float64]
    assert set(seen) == {torch.float64}


def test_non_finite_samples_are_marked():
    def field(t, y):
        return torch.where(y > 1.5, torch.inf, -y)

    solution = Euler(4).solve(field, torch.tensor([[1.0], [2.0]]), 0.0, 1.0)
    assert solution.status.tolist() == [Status.SUCCESS, Status.NON_FINITE]
    assert solution.success.tolist() == [True, False]
    with pytest.raises(RuntimeError, match="sample 1 ended with NON_FINITE"):
        solution.require_success()


def test_a_quadrature_that_is_not_finite_marks_its_sample():
    def field(t, y):
        return -y, {"log": torch.log(y - 0.5).squeeze(1)}

    solution = Euler(4).solve(field, torch.tensor([[9.0], [0.5]]), 0.0, 1.0, quadratures={"log": None})
    assert solution.status.tolist() == [Status.SUCCESS, Status.NON_FINITE]


def test_solvers_are_rebuilt_from_their_configuration():
    solver = Heun(grid=[0.1, 0.2])
    given = {"steps": None, "grid": (0.1, 0.2), "nfe": None, "gradient": Backprop()}
    assert configuration(solver) == given
    assert Heun(**configuration(solver)) == solver
    assert replace(Euler(3), steps=5) == Euler(steps=5)
    assert lookup("solvers.Euler") is Euler


def test_gradients_reach_parameters_of_a_module():
    net = torch.nn.Linear(2, 2)
    Euler(3).solve(lambda t, y: net(y), torch.ones(4, 2), 0.0, 1.0).y.sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())


def test_vmap_passes_through_a_fixed_grid():
    rates = torch.tensor([1.0, 2.0], dtype=torch.float64)
    solve = lambda rate: RK4(20).solve(lambda t, y: -rate * y, torch.ones(3, dtype=torch.float64), 0.0, 1.0).y
    torch.testing.assert_close(torch.func.vmap(solve)(rates)[:, 0], torch.exp(-rates), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Euler(), "pass exactly one of the three"),
        (lambda: Euler(5, grid=(0.5,)), "one of the three"),
        (lambda: Euler(nfe=5, steps=5), "one of the three"),
        (lambda: Euler(nfe=0), "function evaluations are whole"),
        (lambda: Heun(nfe=7), "pass nfe=6 or 8"),
        (lambda: RK4(nfe=3), "pass nfe=4."),
        (lambda: Euler(0), "at least 1"),
        (lambda: Euler(2.5), "at least 1"),
        (lambda: Euler(True), "at least 1"),
        (lambda: Euler(grid=(0.5, 0.5)), "increase"),
        (lambda: Euler(grid=(0.5, 0.2)), "increase"),
        (lambda: Euler(grid=(0.5, float("inf"))), "finite"),
    ],
)
def test_bad_grids_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


ONE = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((decay, ONE, 0.0, 1.0), {"manifold": object()}, ValueError, "leave the manifold"),
        ((decay, ONE.long(), 0.0, 1.0), {}, ValueError, "no real derivative"),
        ((decay, ONE.cfloat(), 0.0, 1.0), {}, ValueError, "no real derivative"),
        ((decay, torch.tensor(1.0), 0.0, 1.0), {}, ValueError, "first dimension"),
        ((decay, (ONE, torch.ones(3)), 0.0, 1.0), {}, ValueError, "first dimension"),
        ((decay, ONE, 0.0, 1.0), {"args": ({"c": torch.ones(4)},)}, ValueError, "in args"),
        ((decay, (), 0.0, 1.0), {}, ValueError, "no tensor"),
        ((decay, "state", 0.0, 1.0), {}, TypeError, "nested tuple"),
        ((decay, ONE, float("nan"), 1.0), {}, ValueError, "t0=nan"),
        ((decay, ONE, 0.0, torch.ones(2)), {}, ValueError, "one constant for the batch"),
        ((decay, ONE, 0.0, torch.tensor(1.0, requires_grad=True)), {}, ValueError, "one constant for the batch"),
        ((decay, ONE, 0.0, 1.0), {"at": [0.5, 0.2]}, ValueError, "sort them"),
        ((decay, ONE, 0.0, 1.0), {"at": [0.5, 1.2]}, ValueError, "lie between t0=0.0 and t1=1.0"),
        ((decay, ONE, 1.0, 0.0), {"at": [0.2, 0.5]}, ValueError, "direction"),
        ((lambda t, y: y[:, :1], ONE, 0.0, 1.0), {}, ValueError, "derivative of shape"),
        ((lambda t, y: (y, {"q": t}), ONE, 0.0, 1.0), {}, TypeError, "quadratures="),
        ((decay, ONE, 0.0, 1.0), {"quadratures": {"q": None}}, ValueError, "without integrands"),
        ((lambda t, y: (y, {"p": t}), ONE, 0.0, 1.0), {"quadratures": {"q": None}}, ValueError, "exactly these"),
        ((lambda t, y: (y, {"q": t, "p": t}), ONE, 0.0, 1.0), {"quadratures": {"q": None}}, ValueError, "exactly"),
        ((lambda t, y: (y, {"q": t[0]}), ONE, 0.0, 1.0), {"quadratures": {"q": None}}, ValueError, r"return \[B\] or"),
        ((lambda t, y: {"b": y["a"]}, {"a": ONE}, 0.0, 1.0), {}, TypeError, "same keys"),
        ((lambda t, y: (y[0],), (ONE, ONE), 0.0, 1.0), {}, TypeError, "as many tensors"),
    ],
)
def test_arguments_that_cannot_be_honoured_are_refused(arguments, options, error, message):
    with pytest.raises(error, match=message):
        Euler(2).solve(*arguments, **options)


def test_ends_may_be_tensors():
    solution = Euler(2).solve(decay, ONE, torch.tensor(0.0), torch.tensor(1.0), at=torch.tensor([0.5]))
    assert solution.y[0, 0].item() == pytest.approx(0.25)
    assert solution.trajectory[0, 0, 0].item() == pytest.approx(0.5)
