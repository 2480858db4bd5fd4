"""The maps that the conformance suite runs on, but for those with networks: a new one is added here."""

import torch

from cflow import bijections, discrete


def linears():
    yield "permute", bijections.Permute([2, 0, 3, 1]), {}
    for features in (1, 2, 5):
        yield f"LU, {features}", bijections.LULinear(features), {"harsh": (1.0, 3.0)}
        yield f"Householder, {features}", bijections.Householder(features), {}
        gradients = features > 1  # there is one rotation of a line
        yield f"orthogonal, {features}", bijections.Orthogonal(features), {"harsh": (1.0, 10.0), "gradients": gradients}
        yield f"low rank, {features}", bijections.LowRank(features, min(features, 2)), {"harsh": (1.0, 5.0)}
    yield "LU, no bias", bijections.LULinear(3, bias=False), {}
    yield "Householder, odd", bijections.Householder(4, reflections=3), {}
    yield "1x1 convolution", bijections.Conv1x1((3, 2, 4)), {"harsh": (1.0, 3.0)}
    yield "1x1 convolution, one channel", bijections.Conv1x1((1, 2, 2)), {}


def normalisations():
    for shape in ((), 3, (3, 2, 2)):
        norm = bijections.ActNorm(shape)
        norm.encode(3 + 2 * torch.randn(7, *norm.event_shape))
        yield f"ActNorm, {shape}", norm, {}
    norm = bijections.Inverse(bijections.ActNorm(3))
    norm.encode(3 + 2 * torch.randn(7, 3))
    yield "inverse ActNorm", norm, {}
    norm = bijections.BatchNorm(3)
    norm.encode(3 + 2 * torch.randn(7, 3))
    yield "BatchNorm", norm.eval(), {}


def functions():
    inside = torch.rand(6, 3, dtype=torch.float64)
    yield "exp", bijections.Exp(()), {}
    yield "sigmoid", bijections.Sigmoid(3), {}
    yield "softplus", bijections.Softplus((2, 2)), {}
    yield "tanh", bijections.Tanh((2, 1, 2)), {}
    yield "arcsinh", bijections.Arcsinh(2), {}
    yield "leaky ReLU", bijections.LeakyReLU(2, 0.3), {}
    yield "standardise", bijections.Standardise((), 3.0, 0.5), {}
    scale = torch.tensor([[1.0], [2.0]])
    yield "standardise, learned", bijections.Standardise((2, 3), torch.arange(3.0), scale, learned=True), {}
    yield "logarithm", bijections.Inverse(bijections.Exp(3)), {"points": inside * 10}
    yield "rescale", bijections.Rescale(3, -2.0, 5.0), {}
    yield "reshape", bijections.Reshape((1, 2, 2), 4), {}
    for alpha in (0.0, 1e-6, 0.05):
        yield f"logit, {alpha}", bijections.Logit(3, alpha), {"points": 0.05 + 0.9 * inside}
    yield "inverse sigmoid", bijections.Inverse(bijections.Sigmoid(3)), {"points": inside}
    yield "inverse softplus", bijections.Inverse(bijections.Softplus(3)), {"points": inside * 10}
    yield "inverse tanh", bijections.Inverse(bijections.Tanh(3)), {"points": 2 * inside - 1}


def pushes():
    for features in (1, 4):
        yield f"planar, {features}", discrete.Planar(features), {"harsh": (1.0, 5.0, 10.0)}
        yield f"radial, {features}", discrete.Radial(features), {"harsh": (1.0, 5.0, 10.0)}
    yield "planar, context", discrete.Planar(3, context=2), {}
    yield "radial, context", discrete.Radial(3, context=2), {}
    yield "Sylvester", discrete.Sylvester(4, directions=2), {"harsh": (1.0, 5.0)}
    yield "Sylvester, context", discrete.Sylvester(3, context=2), {}


def maps() -> dict:
    """Gives name: (map, arguments of check_bijection). Built in a function: weights come from a fixed seed."""
    members = {}
    with torch.random.fork_rng(devices=[]):
        for group in (linears, normalisations, functions, pushes):
            torch.manual_seed(0)
            for name, bijection, arguments in group():
                if bijection.context_shape is not None:
                    arguments = {"context": torch.randn(bijection.context_shape), **arguments}
                members[name] = bijection, arguments
    return members
