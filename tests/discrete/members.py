"""The members that the conformance suites run on: a new one is added here."""

import torch

from cflow import discrete

# name: (family, arguments of check_univariate)
UNIVARIATES = {
    "additive": (discrete.Additive(), {}),
    "affine": (discrete.Affine(), {}),
    "rational-quadratic": (discrete.RationalQuadratic(), {}),
    "rational-quadratic, wide box": (discrete.RationalQuadratic(bins=5, bound=32.0), {"span": 32.0}),
    "rational-quadratic, affine tails": (discrete.RationalQuadratic(bins=4, tails="affine"), {}),
    "rational-quadratic, box": (discrete.RationalQuadratic(bins=3, bound=1.0, tails="box"), {"span": 1.0}),
    "linear spline": (discrete.LinearSpline(), {}),
    "linear spline, box": (discrete.LinearSpline(tails="box"), {}),
    "quadratic spline": (discrete.QuadraticSpline(), {}),
    "quadratic spline, box": (discrete.QuadraticSpline(tails="box"), {}),
    "cubic spline": (discrete.CubicSpline(), {}),
    "cubic spline, box": (discrete.CubicSpline(tails="box"), {}),
    "mixture of logistics": (discrete.MixtureLogistic(components=3), {"identity": False}),
    "Bernstein polynomial": (discrete.Bernstein(degree=6), {}),
    "sum of squares": (discrete.SumOfSquares(degree=3, polynomials=2), {}),
    "sigmoidal network": (discrete.SigmoidalNetwork(units=3, layers=2), {"identity": False}),
    "integrated network": (discrete.IntegratedNetwork(signal=2, hidden=(8, 8)), {}),
}

DAG = torch.tensor([[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0]])


def couplings():
    yield "coupling, affine", discrete.Coupling(discrete.Affine(), 3, hidden=(8, 8)), {"harsh": (1.0, 5.0)}
    mask = [True, False, True, False]
    yield "coupling, any mask", discrete.Coupling(discrete.Affine(), 4, mask=mask, hidden=(8,), context=2), {}
    mask = [True, False, False]
    yield "coupling, residual", discrete.Coupling(discrete.Affine(), 3, mask=mask, hidden=(8, 8), residual=True), {}
    yield "elementwise", discrete.Elementwise(discrete.Affine(), 2), {"harsh": (1.0, 5.0)}
    yield "elementwise, context", discrete.Elementwise(discrete.Affine(), 2, context=3, hidden=(8,)), {}


def autoregressives():
    make = lambda features, **options: discrete.Autoregressive(discrete.Affine(), features, **options)
    yield "autoregressive", make(5, hidden=(16, 16)), {"harsh": (1.0, 3.0)}
    yield "autoregressive, one feature", make(1, hidden=(4,)), {"gradients": False}  # all of it is masked
    yield "autoregressive, order", make(4, order=[2, 0, 3, 1], hidden=(16,), context=2), {}
    yield "autoregressive, graph", make(4, adjacency=DAG, hidden=(16, 16)), {}
    yield "autoregressive, ResMADE", make(3, hidden=(12, 12, 12), residual=True, activation="silu", context=1), {}
    yield "autoregressive, Jacobi", make(4, hidden=(16, 16), inverse=discrete.Jacobi(tolerance=0.0)), {}
    yield "autoregressive, Gauss-Seidel", make(5, hidden=(16,), inverse=discrete.Jacobi(0.0, blocks=2), context=1), {}
    inverse = discrete.Inverse(make(3, hidden=(16, 16)))
    yield "inverse autoregressive", inverse, {}
    yield "composition", discrete.Compose(make(3, hidden=(8,)), discrete.Inverse(make(3, order=[2, 1, 0]))), {}


def bijections() -> dict:
    """Gives name: (bijection, arguments of check_bijection). Built in a function: weights come from a fixed seed."""
    members = {}
    with torch.random.fork_rng(devices=[]):
        for group in (couplings, autoregressives):
            torch.manual_seed(0)
            for name, bijection, arguments in group():
                if bijection.context_shape is not None:
                    arguments = {"context": torch.randn(bijection.context_shape), **arguments}
                members[name] = bijection, arguments
    return members
