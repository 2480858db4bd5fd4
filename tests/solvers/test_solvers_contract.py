"""Solvers are known by what they say of themselves: nothing asks what class one is."""

import ast
import inspect
from pathlib import Path

import pytest
import torch

import cflow
from cflow import solvers

HOUSE = Path(cflow.__file__).parent
RECIPES = Path(__file__).parents[2] / "recipes"
CLASSES = {
    name
    for name in solvers.__all__
    if inspect.isclass(getattr(solvers, name))
    and issubclass(getattr(solvers, name), solvers.Solver)
    and name != "Solver"
}


def asked(source: str) -> set[str]:
    """Lists the solver classes that some code asks after."""
    found = set()
    for call in ast.walk(ast.parse(source)):
        if isinstance(call, ast.Call) and getattr(call.func, "id", None) in ("isinstance", "issubclass"):
            names = {getattr(each, "id", getattr(each, "attr", None)) for each in ast.walk(call.args[1])}
            found |= names & CLASSES
    return found


def test_the_search_finds_what_it_looks_for():
    assert asked("isinstance(solver, FixedGrid | solvers.Bespoke) and not issubclass(kind, (Adaptive, int))") == {
        "FixedGrid", "Bespoke", "Adaptive",
    }  # fmt: skip
    assert {"Adaptive", "CudaGraph", "FixedGrid", "Wrapper"} <= CLASSES


@pytest.mark.parametrize("folder", [HOUSE, RECIPES], ids=["cflow", "recipes"])
def test_no_room_asks_for_the_class_of_a_solver(folder):
    found = {str(file): asked(file.read_text(encoding="utf-8")) for file in folder.rglob("*.py")}
    assert found
    assert {file: names for file, names in found.items() if names} == {}


def test_no_solver_writes_the_arguments_of_a_solve_out_again():
    kinds, todo = set(), [solvers.Solver]
    while todo:
        kinds.add(kind := todo.pop())
        todo += kind.__subclasses__()
    assert {kind.__name__ for kind in kinds if "solve" in vars(kind)} == {"Solver"}


def test_a_solver_that_leaves_out_what_is_asked_for_is_named():
    class Hasty(solvers.Solver):
        def _solve(self, problem):
            (y,), h = problem.y0, problem.t1 - problem.t0
            return problem.finished([y + h * problem(torch.full((problem.batch,), problem.t0), [y])[0][0]])

    field = lambda t, y: -y
    assert Hasty().solve(field, torch.ones(2, 1), 0.0, 1.0).y.shape == (2, 1)
    with pytest.raises(ValueError, match=r"Hasty.solve\(at=\[0.5\]\): the solver returned 0 of 1"):
        Hasty().solve(field, torch.ones(2, 1), 0.0, 1.0, at=[0.5])
    integrand = lambda t, y: (-y, {"q": y[:, 0]})
    with pytest.raises(ValueError, match=r"quadratures=\['q'\]\): the solver returned 0 of 1.*refuse them in _check"):
        Hasty().solve(integrand, torch.ones(2, 1), 0.0, 1.0, quadratures={"q": None})


def test_a_solver_that_returns_no_solution_is_told_what_one_is():
    class Bare(solvers.Solver):
        def _solve(self, problem):
            return problem.y0[0]

    with pytest.raises(TypeError, match=r"Bare._solve returned a Tensor, not a Solution; return problem.finished"):
        Bare().solve(lambda t, y: -y, torch.ones(3, 2), 0.0, 1.0)
