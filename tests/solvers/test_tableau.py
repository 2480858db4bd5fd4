from fractions import Fraction
from math import prod

import pytest

from cflow.solvers import Tableau, tableau
from cflow.solvers.tableau import DOPRI5, EULER, HEUN, MIDPOINT, RK4

TABLEAUS = [EULER, MIDPOINT, HEUN, RK4, DOPRI5]


def rooted_trees(size):
    """Lists the rooted trees with ``size`` nodes as sorted tuples of their subtrees."""

    def forests(total, largest):
        if total == 0:
            return {()}
        return {
            tuple(sorted((tree, *rest)))
            for first in range(1, min(total, largest) + 1)
            for tree in rooted_trees(first)
            for rest in forests(total - first, first)
        }

    return sorted(forests(size - 1, size - 1))


def size(tree):
    return 1 + sum(map(size, tree))


def density(tree):
    return size(tree) * prod(map(density, tree))


def elementary(tree, a):
    """Computes the stage values of a tree's elementary weight."""
    stages = range(len(a))
    values = [Fraction(1)] * len(a)
    for branch in tree:
        inner = elementary(branch, a)
        values = [value * sum((a[i][j] * inner[j] for j in range(i)), Fraction(0)) for i, value in zip(stages, values)]
    return values


def conditions(a, weights, order):
    """Lists the residuals of all order conditions up to an order."""
    return [
        sum((w * value for w, value in zip(weights, elementary(tree, a))), Fraction(0)) - Fraction(1, density(tree))
        for nodes in range(1, order + 1)
        for tree in rooted_trees(nodes)
    ]


def test_there_are_as_many_rooted_trees_as_cayley_counted():
    assert [len(rooted_trees(n)) for n in range(1, 7)] == [1, 1, 2, 4, 9, 20]


@pytest.mark.parametrize("method", TABLEAUS, ids=lambda method: method.name)
def test_tableau_has_exactly_the_order_it_names(method):
    assert not any(conditions(method.a, method.b, method.order))
    assert any(conditions(method.a, method.b, method.order + 1))


@pytest.mark.parametrize("method", [HEUN, DOPRI5], ids=lambda method: method.name)
def test_embedded_weights_have_exactly_the_order_they_name(method):
    embedded = [b - e for b, e in zip(method.b, method.error)]
    assert not any(conditions(method.a, embedded, method.embedded_order))
    assert any(conditions(method.a, embedded, method.embedded_order + 1))


@pytest.mark.parametrize("method", TABLEAUS, ids=lambda method: method.name)
def test_combinations_are_the_rows_they_come_from(method):
    for row, combination in [*zip(method.a, method.stages), (method.b, method.step)]:
        weights = [0.0] * len(row)
        if combination is not None:
            weights[combination.lead] = combination.weight
            for index, ratio in combination.rest:
                weights[index] = combination.weight * ratio
        assert weights == pytest.approx([float(entry) for entry in row], rel=1e-15)


def test_only_dopri5_is_first_same_as_last():
    assert [method.fsal for method in TABLEAUS] == [False, False, False, False, True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a": ((), ())}, "explicit method"),
        ({"c": (Fraction(0), Fraction(1, 3))}, "inconsistent"),
        ({"b": (Fraction(1), Fraction(1))}, "inconsistent"),
        ({"error": (Fraction(1), Fraction(-1))}, "embedded"),
    ],
)
def test_defective_tableaus_are_refused(changes, message):
    entries = {"name": "x", "a": MIDPOINT.a, "b": MIDPOINT.b, "c": MIDPOINT.c, "order": 2, **changes}
    with pytest.raises(ValueError, match=message):
        Tableau(**entries)


def test_module_exports_what_it_lists():
    assert all(hasattr(tableau, name) for name in tableau.__all__)
