import pytest
import torch

import cflow
from cflow import bases, fields, paths, solvers
from cflow.registry import lookup
from cflow.solvers import Checkpointed, Euler, Picard, Status, by_name
from cflow.testing import GaussianField, check_solver


def swirl(t, y):
    return torch.sin(3 * y.flip(-1) + 2 * t.unsqueeze(1))


@pytest.fixture
def start(generator):
    return torch.randn(3, 2, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("check", ["order", "round trip", "batch", "structures", "outputs", "failures"])
def test_with_no_tolerance_it_conforms_as_euler_does(check):
    make = lambda steps: Picard(int(steps), window=5, tolerance=0.0)
    check_solver(make, order=1, adaptive=False, checks=[check])


@pytest.mark.parametrize("window", [2, 7, 40, None])
@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.2)])
def test_without_tolerance_it_is_euler(window, ends, start):
    at = [0.3, 0.55] if ends[0] == 0 else [0.55, 0.3]
    euler = Euler(40).solve(swirl, start, *ends, at=at)
    solution = Picard(40, window=window, tolerance=0.0).solve(swirl, start, *ends, at=at)
    assert torch.allclose(solution.y, euler.y, rtol=0, atol=1e-13)
    assert torch.allclose(solution.trajectory, euler.trajectory, rtol=0, atol=1e-13)
    assert solution.stats.nfe <= euler.stats.nfe
    assert solution.stats.steps.tolist() == euler.stats.steps.tolist()


def test_the_error_falls_with_the_tolerance_and_so_do_the_rounds(start):
    euler = Euler(64).solve(swirl, start, 0.0, 1.0).y
    errors, rounds = [], []
    for tolerance in (1e-2, 1e-4, 1e-6, 1e-8):
        solution = Picard(64, window=16, tolerance=tolerance).solve(swirl, start, 0.0, 1.0)
        errors.append(float((solution.y - euler).abs().max()))
        rounds.append(solution.stats.nfe)
    assert all(error < 10 * tolerance for error, tolerance in zip(errors, (1e-2, 1e-4, 1e-6, 1e-8)))
    assert rounds == sorted(rounds)
    assert rounds[1] < 64 / 2


def test_a_field_without_state_takes_one_round_per_window(start):
    """All states are right after one round, and a second finds that out."""
    solution = Picard(32, window=8).solve(lambda t, y: t.unsqueeze(1) + 0 * y, start, 0.0, 1.0)
    assert torch.allclose(solution.y, start + (0.5 - 1 / 64), atol=1e-12)
    assert solution.stats.nfe <= 2 * 32 / 8 + 1
    assert 3 * 32 <= solution.stats.evaluations <= 3 * 8 * solution.stats.nfe


def test_rows_of_arguments_follow_their_samples(start):
    rates = torch.tensor([[1.0], [2.0], [5.0]], dtype=torch.float64)
    sizes = []

    def field(t, y, extras):
        sizes.append((len(t), len(y["a"]), len(extras["rate"])))
        return {"a": -extras["rate"] * y["a"]}

    options = {"args": ({"rate": rates, "nothing": None},)}
    solution = Picard(20, window=6, tolerance=1e-9).solve(field, {"a": start}, 0.0, 1.0, **options)
    euler = Euler(20).solve(field, {"a": start}, 0.0, 1.0, **options)
    assert torch.allclose(solution.y["a"], euler.y["a"], atol=1e-7)
    assert sizes[0] == (18, 18, 18)
    assert all(len(set(each)) == 1 for each in sizes)


def test_a_sample_that_is_not_finite_is_not_waited_for(start):
    bad = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    field = lambda t, y, bad: torch.where(bad.unsqueeze(1) > 0, torch.nan, swirl(t, y))
    solution = Picard(30, window=10).solve(field, start, 0.0, 1.0, args=(bad,))
    assert solution.status.tolist() == [Status.SUCCESS, Status.NON_FINITE, Status.SUCCESS]
    assert solution.stats.nfe < 30


@pytest.mark.parametrize("predict", ["velocity", "x1", "noise", "score"])
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_flows_sample_with_it(predict, steps, generator):
    path = paths.Linear(predict)
    flow = cflow.ContinuousFlow(GaussianField(path, 2, 0.7, 0.5), bases.Normal(2), path=path).double()
    x = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        solution = flow.transport(x, 0.0, 1.0, solver=Picard(steps, tolerance=1e-10))
        exact = flow.transport(x, 0.0, 1.0, solver=Euler(steps)).y
    assert torch.allclose(solution.y, exact, atol=1e-7)


def test_gradients_are_those_of_euler(start):
    start.requires_grad_()
    solve = lambda solver: torch.autograd.grad(solver.solve(swirl, start, 0.0, 1.0).y.sum(), start)[0]
    assert torch.allclose(solve(Picard(12, window=4, tolerance=0.0)), solve(Euler(12)), atol=1e-12)


@pytest.mark.parametrize("count", [0, 1])
def test_small_batches_and_half_precision(count):
    y0 = torch.ones(count, 2, 3, dtype=torch.bfloat16)
    solution = Picard(9, window=4).solve(lambda t, y: -y, y0, 0.0, 1.0, at=[0.5, 1.0])
    assert solution.y.shape == (count, 2, 3)
    assert solution.y.dtype == torch.bfloat16
    assert solution.trajectory.shape == (2, count, 2, 3)


def test_it_is_saved_with_a_flow(tmp_path):
    solver = Picard(20, window=10, tolerance=1e-2)
    flow = cflow.ContinuousFlow(fields.MLP(2, hidden=(8,)), bases.Normal(2), path=paths.Linear(), solver=solver)
    assert cflow.load(cflow.save(flow, tmp_path / "flow")).solver == solver
    assert lookup("solvers.Picard") is Picard
    assert by_name("picard", steps=20, window=10, tolerance=1e-2) == solver


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 1}, "between 2 and 10 steps"),
        ({"window": 11}, "between 2 and 10 steps"),
        ({"window": 2.5}, "between 2 and 10 steps"),
        ({"tolerance": -1.0}, "finite and not negative"),
        ({"tolerance": float("nan")}, "finite and not negative"),
        ({"gradient": Checkpointed()}, r"Backprop\(\)"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Picard(10, **options)


def test_quadratures_are_refused(start):
    with pytest.raises(ValueError, match="use Euler"):
        Picard(10).solve(lambda t, y: (-y, {"q": t}), start, 0.0, 1.0, quadratures={"q": None})
    assert solvers.Picard is Picard
