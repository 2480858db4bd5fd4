"""Which tensors a field depends on: found by themselves, or missed aloud."""

import functools

import pytest
from gradient_standins import Net, close, gradients, start

from cflow.solvers import (
    Backprop,
    Checkpointed,
    Euler,
)
from cflow.solvers.gradients.parameters import parameters_of


def test_a_gradient_that_would_be_lost_raises():
    net, hidden = Net(), Net()
    field = lambda t, y: net(t, y) + hidden(t, y)
    y = Euler(3, gradient=Checkpointed()).solve(field, start(), 0.0, 1.0, params=tuple(net.parameters())).y
    with pytest.raises(RuntimeError, match=r"not in args or params; add it there.*"):
        y.sum().backward()
    with pytest.raises(RuntimeError, match="not in args or params"):
        Euler(3, gradient=Checkpointed()).solve(field, start(), 0.0, 1.0, params=())
    field = lambda t, y: hidden.twice.expand_as(y)
    y = Euler(3, gradient=Checkpointed()).solve(field, start().requires_grad_(), 0.0, 1.0, params=()).y
    with pytest.raises(RuntimeError, match="not in args or params"):
        y.sum().backward()


def test_a_tensor_and_what_it_was_computed_from_cannot_both_be_parameters():
    net = Net()

    def loss(gradient, also=None):
        weight = net.twice.sin()
        field = lambda t, y: y * weight
        params = None if also is None else (weight, also)
        return Euler(2, gradient=gradient).solve(field, start(), 0.0, 1.0, params=params).y.sum()

    with pytest.raises(ValueError, match="counted twice"):
        loss(Checkpointed(), net.twice)
    close(gradients(loss(Checkpointed()), [net.twice]), gradients(loss(Backprop()), [net.twice]))


class Holder:
    def __init__(self, net):
        self.net = net

    def __call__(self, t, y):
        return self.net(t, y)

    def method(self, t, y):
        return self.net(t, y)


GLOBAL = Net()


def by_global(t, y):
    return GLOBAL(t, y)


def test_parameters_are_found_where_a_function_refers_to_them():
    net = Net()
    expected = {id(each) for each in net.parameters()}
    shape = lambda net, t, y: net(t, y)
    nested = [lambda t, y: net(t, y)]
    for f in (
        net, net.forward, lambda t, y: net(t, y), functools.partial(shape, net), Holder(net), Holder(net).method,
        lambda t, y, held=net: held(t, y), lambda t, y: nested[0](t, y),
    ):  # fmt: skip
        assert {id(each) for each in parameters_of(f)} == expected
    assert {id(each) for each in parameters_of(by_global)} == {id(each) for each in GLOBAL.parameters()}
    assert parameters_of(lambda t, y: -y) == ()
