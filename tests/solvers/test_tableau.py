from fractions import Fraction
from functools import cache
from math import prod

import pytest

from cflow.solvers import Tableau, tableau
from cflow.solvers.tableau import (
    BOSH3,
    DOPRI5,
    DOPRI8,
    EULER,
    HEUN,
    HEUN3,
    MIDPOINT,
    RALSTON,
    RK4,
    THREE_EIGHTHS,
    TSIT5,
)

TABLEAUS = [EULER, MIDPOINT, HEUN, RALSTON, HEUN3, RK4, THREE_EIGHTHS, BOSH3, DOPRI5, TSIT5, DOPRI8]
EMBEDDED = [method for method in TABLEAUS if method.error]
EXTENDED = [method for method in TABLEAUS if method.dense]
named = lambda methods: pytest.mark.parametrize("method", methods, ids=lambda method: method.name)


@cache
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
    return extended(a, weights, order, Fraction(1))


def extended(a, weights, order, theta):
    """Lists the residuals of the conditions on the solution at ``theta`` steps, by number of nodes up to an order."""
    return [
        sum((w * value for w, value in zip(weights, elementary(tree, a))), Fraction(0)) - theta**nodes / density(tree)
        for nodes in range(1, order + 1)
        for tree in rooted_trees(nodes)
    ]


def hold(residuals, method):
    """Says whether conditions hold: exactly, or for rounded coefficients to what their last digits allow."""
    return max(map(abs, residuals)) <= (Fraction(2, 10**14) if method.rounded else 0)


def test_there_are_as_many_rooted_trees_as_cayley_counted():
    assert [len(rooted_trees(n)) for n in range(1, 7)] == [1, 1, 2, 4, 9, 20]


@named(TABLEAUS)
def test_tableau_has_exactly_the_order_it_names(method):
    assert hold(conditions(method.a, method.b, method.order), method)
    if method.order < 8:  # 286 trees of nine nodes would take a minute
        assert not hold(conditions(method.a, method.b, method.order + 1), method)


@named(EMBEDDED)
def test_embedded_weights_have_exactly_the_order_they_name(method):
    embedded = [b - e for b, e in zip(method.b, method.error)]
    assert hold(conditions(method.a, embedded, method.embedded_order), method)
    assert not hold(conditions(method.a, embedded, method.embedded_order + 1), method)


@named(EXTENDED)
def test_continuous_extensions_have_exactly_the_order_they_name(method):
    for theta in (Fraction(1, 3), Fraction(9, 10), Fraction(1)):
        weights = [sum(c * theta**power for power, c in enumerate(row, 1)) for row in method.dense]
        assert hold(extended(method.a, weights, method.dense_order, theta), method)
        if theta == 1:
            assert all(abs(w - b) <= Fraction(1, 10**14) for w, b in zip(weights, method.b))
        else:
            assert not hold(extended(method.a, weights, method.dense_order + 1, theta), method)


@named(TABLEAUS)
def test_combinations_are_the_rows_they_come_from(method):
    for row, combination in [*zip(method.a, method.stages), (method.b, method.step)]:
        weights = [0.0] * len(row)
        if combination is not None:
            weights[combination.lead] = combination.weight
            for index, ratio in combination.rest:
                weights[index] = combination.weight * ratio
        assert weights == pytest.approx([float(entry) for entry in row], rel=1e-14)


def test_which_methods_are_first_same_as_last():
    assert [method for method in TABLEAUS if method.fsal] == [BOSH3, DOPRI5, TSIT5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a": ((), ())}, "explicit method"),
        ({"c": (Fraction(0), Fraction(1, 3))}, "does not sum to its node, or"),
        ({"b": (Fraction(1), Fraction(1))}, "does not sum to its node, or"),
        ({"error": (Fraction(1), Fraction(-1))}, "embedded"),
        ({"dense": ((Fraction(1),), (Fraction(0),)), "dense_order": 1}, "pass both dense"),
        ({"dense": ((Fraction(0),), (Fraction(1),))}, "pass both dense"),
    ],
)
def test_defective_tableaus_are_refused(changes, message):
    entries = {"name": "x", "a": MIDPOINT.a, "b": MIDPOINT.b, "c": MIDPOINT.c, "order": 2, **changes}
    with pytest.raises(ValueError, match=message):
        Tableau(**entries)


def test_module_exports_what_it_lists():
    assert all(hasattr(tableau, name) for name in tableau.__all__)
