from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from cflow.solvers import RK4, Dopri5
from cflow.solvers.state import gather, join, like_rows, per_row, split


class Molecule(NamedTuple):
    positions: Tensor
    charges: Tensor


def test_split_and_join_are_inverse_for_nested_structures():
    parts = [torch.full((2,), float(i)) for i in range(5)]
    tree = {"b": parts[0], "a": (parts[1], [parts[2]], Molecule(parts[3], parts[4]))}
    flat = split(tree, tree)
    assert all(one is other for one, other in zip(flat, parts))
    again = join(flat, tree)
    assert list(again) == ["b", "a"]
    assert isinstance(again["a"][1], list)
    assert isinstance(again["a"][2], Molecule)
    assert again["a"][2].charges is parts[4]


def test_dicts_are_matched_by_key():
    one, two = torch.ones(1), torch.zeros(1)
    assert split({"y": two, "x": one}, {"x": one, "y": two})[0] is one


@pytest.mark.parametrize(
    ("tree", "like", "message"),
    [
        ((torch.ones(1),), torch.ones(1), "has a tuple"),
        (torch.ones(1), (torch.ones(1),), "1 entries"),
        (torch.ones(1), {"a": torch.ones(1)}, "same keys"),
        ({"b": torch.ones(1)}, {"a": torch.ones(1)}, "same keys"),
        (1.0, 1.0, "nested tuple"),
    ],
)
def test_structures_that_differ_are_refused(tree, like, message):
    with pytest.raises(TypeError, match=message):
        split(tree, like)


def test_gather_takes_rows_of_tensors_and_leaves_the_rest():
    tree = ({"a": torch.arange(4), "b": None}, 3, "word", [torch.arange(8).reshape(4, 2)])
    taken = gather(tree, torch.tensor([3, 1]))
    assert taken[0]["a"].tolist() == [3, 1]
    assert taken[0]["b"] is None
    assert taken[1:3] == (3, "word")
    assert taken[3][0].tolist() == [[6, 7], [2, 3]]


def test_rows_are_flattened_and_broadcast():
    assert per_row(torch.ones(3, 2, 4)).shape == (3, 8)
    assert per_row(torch.ones(3)).shape == (3, 1)
    assert per_row(torch.ones(0, 2, 4)).shape == (0, 8)
    assert like_rows(torch.ones(3), torch.ones(3, 2, 4)).shape == (3, 1, 1)


@pytest.mark.parametrize("solver", [RK4(20), Dopri5()], ids=lambda solver: type(solver).__name__)
def test_a_named_tuple_goes_through_a_solve(solver):
    start = Molecule(torch.ones(3, 2), torch.ones(3))
    field = lambda t, y: Molecule(-y.positions, y.charges)
    solution = solver.solve(field, start, 0.0, 1.0, at=[0.5, 1.0])
    assert isinstance(solution.y, Molecule)
    assert isinstance(solution.trajectory, Molecule)
    assert solution.trajectory.positions.shape == (2, 3, 2)
    torch.testing.assert_close(solution.y.charges, torch.full((3,), torch.e), rtol=1e-4, atol=0)
