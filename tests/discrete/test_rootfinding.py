import math

import pytest
import torch

from cflow.discrete.univariate.rootfinding import invert


def from_slope(function, slope):
    return lambda x: (function(x), slope(x).log())


STEEP = from_slope(
    lambda x: 0.001 * x + torch.sigmoid(1000 * (x - 3)) + torch.sigmoid(1000 * (x + 7)),
    lambda x: 0.001 + sum(1000 * torch.sigmoid(u) * torch.sigmoid(-u) for u in (1000 * (x - 3), 1000 * (x + 7))),
)
HARD = {
    "a sharp staircase": STEEP,
    "a ninth power": from_slope(lambda x: x**9 + 0.001 * x, lambda x: 9 * x**8 + 0.001),
    "an exponential": from_slope(lambda x: x.sinh(), lambda x: x.cosh()),
    "a logarithm": from_slope(lambda x: x.asinh(), lambda x: (1 + x**2).rsqrt()),
    "a kink": from_slope(
        lambda x: torch.where(x > 0, 1000 * x, 0.001 * x), lambda x: torch.where(x > 0, 1000.0, 0.001)
    ),
    "a line": from_slope(lambda x: 3 * x - 1, lambda x: torch.full_like(x, 3.0)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", HARD)
def test_hard_functions_are_inverted_to_rounding_from_anywhere(name, dtype, generator):
    x = 4 * torch.randn(4000, generator=generator, dtype=dtype)
    function = lambda x: tuple(each.to(dtype) for each in HARD[name](x))
    z, slope = function(x)
    for start in (torch.zeros_like(z), torch.full_like(z, 50.0), -30 * torch.rand(4000, generator=generator).to(dtype)):
        found, ladj = invert(function, z, start)
        assert found.dtype == ladj.dtype == dtype
        # A few roundings of x, or of z divided by the slope on either side of the root.
        flat = torch.minimum(slope, function(found)[1]).exp()
        size = 1 + x.abs() + (1 + z.abs()) / flat
        assert float(((found - x).abs() / size).max()) < 16 * torch.finfo(dtype).eps
        torch.testing.assert_close(ladj, -function(found)[1])


def test_brackets_widen_to_roots_far_away(float64):
    function = from_slope(lambda x: x.asinh() + 1e-6 * x, lambda x: (1 + x**2).rsqrt() + 1e-6)
    x = torch.tensor([1e3, -1e6, 1e12, -1e20])
    found, _ = invert(function, function(x)[0], torch.zeros_like(x))
    torch.testing.assert_close(found, x, rtol=1e-12, atol=0)


def test_a_given_bracket_is_used_and_may_end_on_the_root(float64):
    z, low, high = torch.tensor([[8.0, 27.0, 0.125], [2.0, 1.0, 0.4], [9.0, 8.0, 0.5]])
    seen = []

    def cube(x):
        seen.append(x.detach())
        return x**3, torch.log(3 * x**2)

    found, _ = invert(cube, z, torch.tensor([2.5, 2.0, 0.5]), low=low, high=high)
    torch.testing.assert_close(found, torch.tensor([2.0, 3.0, 0.5]), rtol=1e-15, atol=0)
    assert all(bool(((low <= x) & (x <= high)).all()) for x in seen)


def test_entries_without_a_solution_are_nan_and_the_others_are_not(float64):
    bounded = from_slope(torch.atan, lambda x: 1 / (1 + x**2))
    z = torch.tensor([2.0, 0.5, -math.inf, math.nan, math.inf, -1.0])
    found, ladj = invert(bounded, z, torch.zeros_like(z))
    assert found.isnan().tolist() == ladj.isnan().tolist() == [True, False, True, True, True, False]
    torch.testing.assert_close(found[[1, 5]], torch.tensor([0.5, -1.0]).tan())
    # A bracket that does not hold the root is found out, not obeyed.
    wrong, _ = invert(HARD["a line"], torch.tensor([8.0, 8.0]), torch.zeros(2), high=torch.tensor([1.0, 4.0]))
    assert wrong.isnan().tolist() == [True, False]
    unfinished, _ = invert(HARD["a ninth power"], torch.tensor([1e9]), torch.zeros(1), iterations=3)
    assert unfinished.isnan().all()


def test_derivatives_are_those_of_the_implicit_function_to_third_order(float64):
    """sinh(a x) = z has the solution asinh(z) / a, with log dx/dz = -log(a sqrt(1 + z^2))."""
    z, a = torch.tensor([0.3, -2.0, 40.0], requires_grad=True), torch.tensor([0.5, 1.0, 3.0], requires_grad=True)
    function = lambda x: ((a * x).sinh(), (a * (a * x).cosh()).log())
    solved = invert(function, z, torch.zeros(3))
    closed = z.asinh() / a, -(a * (1 + z**2).sqrt()).log()
    for found, true in zip(solved, closed):
        values = [(found, true)]
        for _ in range(3):
            for value in values:
                torch.testing.assert_close(*value, rtol=1e-9, atol=1e-11)
            values = [
                pair
                for value in values
                for pair in zip(*(torch.autograd.grad(each.sum(), (z, a), create_graph=True) for each in value))
            ]
        for value in values:
            torch.testing.assert_close(*value, rtol=1e-9, atol=1e-11)


def test_the_value_is_the_same_with_a_graph_and_without_one():
    weight = torch.nn.Parameter(torch.tensor(2.0))
    function = lambda x: (weight * x + x**3, torch.log(weight + 3 * x**2))
    z = torch.linspace(-50, 50, 101)
    found, _ = invert(function, z, torch.zeros(101))
    with torch.no_grad():
        assert torch.equal(invert(function, z, torch.zeros(101))[0], found)
    (gradient,) = torch.autograd.grad(found.sum(), weight)
    torch.testing.assert_close(gradient, -(found / (weight + 3 * found**2)).sum().detach())


def test_transforms_of_torch_func_go_through(float64):
    z, a = torch.tensor([0.3, -2.0, 4.0]), torch.tensor([0.5, 1.0, 3.0])
    solve = lambda z, a: invert(lambda x: ((a * x).sinh(), (a * (a * x).cosh()).log()), z, torch.zeros_like(z))[0]
    slopes = torch.func.vmap(torch.func.grad(solve, (0, 1)))(z, a)
    torch.testing.assert_close(slopes, (1 / (a * (1 + z**2).sqrt()), -z.asinh() / a**2))
    _, tangent = torch.func.jvp(solve, (z, a), (torch.ones(3), torch.ones(3)))
    torch.testing.assert_close(tangent, slopes[0] + slopes[1])


def test_an_entry_does_not_know_of_the_others(generator):
    x = 5 * torch.randn(200, generator=generator)
    z, _ = STEEP(x)
    together, _ = invert(STEEP, z, torch.zeros(200))
    alone = torch.cat([invert(STEEP, each, torch.zeros(1))[0] for each in z.split(1)])
    assert torch.equal(together, alone)


def test_the_loop_ends_when_all_have_converged():
    calls = []
    invert(lambda x: (calls.append(1), (2 * x, torch.full_like(x, math.log(2.0))))[1], torch.randn(9), torch.zeros(9))
    assert len(calls) <= 7  # a step across, a step back, a check; then three on the graph


def test_a_compiled_solve_is_one_loop_and_agrees(float64):
    z, a = torch.tensor([0.3, -2.0, 4.0]), torch.tensor([0.5, 1.0, 3.0], requires_grad=True)

    def solve(z, a):
        return invert(lambda x: ((a * x).sinh(), (a * (a * x).cosh()).log()), z, torch.zeros_like(z))[0]

    calls = []

    def backend(graph, inputs):
        calls.append(sum("while_loop" in str(node.target) for node in graph.graph.nodes))
        return graph.forward

    torch._dynamo.reset()
    found = torch.compile(solve, backend=backend, fullgraph=True)(z, a)
    assert calls == [1]
    torch.testing.assert_close(found, z.asinh() / a, rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(found.sum(), a)
    torch.testing.assert_close(gradient, -z.asinh() / a.detach() ** 2)
