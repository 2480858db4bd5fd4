import dataclasses

import pytest
import torch

from cflow.solvers import (
    RK4,
    Bosh3,
    Checkpointed,
    Dopri5,
    Dopri8,
    Euler,
    Heun,
    Midpoint,
    Ralston,
    Tsit5,
    Wrapper,
)
from cflow.solvers.solution import Status
from cflow.testing import check_solver
from cflow.testing.solvers import SOLVER_CHECKS

MEMBERS = {
    **{type(each).__name__: each for each in (Euler(5), Midpoint(5), Heun(5), Ralston(5), RK4(5))},
    **{kind.__name__: kind() for kind in (Bosh3, Dopri5, Tsit5, Dopri8)},
    **{f"{kind.__name__} joint": kind(per_sample=False) for kind in (Bosh3, Dopri5, Tsit5, Dopri8)},
    "RK4 checkpointed": RK4(5, gradient=Checkpointed()),
    "Dopri5 checkpointed": Dopri5(gradient=Checkpointed()),
    "Dopri8 joint checkpointed": Dopri8(per_sample=False, gradient=Checkpointed()),
}


@pytest.mark.parametrize("solver", MEMBERS.values(), ids=MEMBERS)
@pytest.mark.parametrize("check", SOLVER_CHECKS)
def test_solver_conforms(solver, check):
    check_solver(solver, checks=[check])


@pytest.mark.parametrize("check", SOLVER_CHECKS)
def test_a_wrapper_conforms_as_what_it_wraps(check):
    check_solver(lambda steps: Wrapper(Heun(int(steps))), order=2, adaptive=False, checks=[check])
    check_solver(lambda bound: Wrapper(Dopri5(bound, bound)), order=5, adaptive=True, checks=[check])


class Tampered:
    """A solver of the package whose result or whose field is changed on the way: the suite must see it."""

    def __init__(self, solver, after=lambda solution: solution, before=lambda f: f):
        self.solver, self.after, self.before = solver, after, before

    def __getattr__(self, name):
        return getattr(self.solver, name)

    def solve(self, f, *args, **kwargs):
        return self.after(self.solver.solve(self.before(f), *args, **kwargs))


def off(solution):
    return dataclasses.replace(solution, y=solution.y * (1 + 1e-4))


def coupled(solution):
    return dataclasses.replace(solution, y=(solution.y[0] + 1e-9 * solution.y[0].sum(0), solution.y[1]))


def late(f):
    return lambda t, y, *args: f(t + 0.01, y, *args)


def forgiving(solution):
    return dataclasses.replace(solution, status=torch.full_like(solution.status, Status.SUCCESS))


def detached(solution):
    return dataclasses.replace(solution, y=solution.y.detach())


def reading(solution):
    solution.y.sum().item()
    return solution


def halved(solution):
    return dataclasses.replace(solution, quadratures={key: q / 2 for key, q in solution.quadratures.items()})


@pytest.mark.parametrize(
    ("check", "defect"),
    [
        ("order", {"after": off}),
        ("interval", {"before": late}),
        ("batch", {"after": coupled}),
        ("quadratures", {"after": halved}),
        ("failures", {"after": forgiving}),
        ("gradients", {"after": detached}),
        ("host reads", {"after": reading}),
        ("outputs", {"after": off}),
    ],
)
def test_suite_catches_a_defect_and_names_it(check, defect):
    with pytest.raises(AssertionError, match=check):
        check_solver(lambda steps: Tampered(RK4(int(steps)), **defect), order=4, adaptive=False, checks=[check])


def test_suite_catches_a_wrong_order():
    with pytest.raises(AssertionError, match="order"):
        check_solver(lambda steps: Midpoint(int(steps)), order=3, adaptive=False, checks=["order"])


def test_suite_refuses_what_it_cannot_judge():
    with pytest.raises(ValueError, match="not known"):
        check_solver(lambda steps: Euler(int(steps)))
    with pytest.raises(ValueError, match="no check"):
        check_solver(Euler(3), checks=["speed"])
