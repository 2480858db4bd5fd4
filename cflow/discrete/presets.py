"""Whole flows by the names of their papers, each a few lines.

All take ``(features, context=0, *, layers, ...)`` and have a standard normal base. :func:`nsf` describes the arguments
that they share. Every layer starts at (or near) the identity, so standardise the data first
(``flow.with_transform(bijections.Standardise.fit(x))``); otherwise they may lie outside the box of a spline. A single
feature cannot be split into halves: for ``features=1`` coupling flows use :class:`Elementwise` layers, whose functions
depend only on the context, and ``nsf`` uses autoregressive layers.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence

from torch import nn

from cflow.arguments import check_integer, plain
from cflow.bases import Normal
from cflow.bijections import Bijection, Compose, Inverse, LULinear, Orthogonal
from cflow.discrete.flow import NormalizingFlow
from cflow.discrete.pushes import Planar, Radial, Sylvester
from cflow.discrete.structure import Autoregressive, Coupling, Elementwise
from cflow.discrete.univariate import (
    Additive,
    Affine,
    Bernstein,
    IntegratedNetwork,
    MixtureLogistic,
    RationalQuadratic,
    SigmoidalNetwork,
    SumOfSquares,
    Univariate,
)
from cflow.fields import ContextEmbedding
from cflow.keywords import check_keywords

__all__ = ["PRESETS"]


def _conditioned(make: Callable[..., NormalizingFlow]) -> Callable[..., NormalizingFlow]:
    """Adds ``classes`` and ``embedding`` to the arguments of a preset."""

    @functools.wraps(make)
    def preset(
        features: int | None = None, context: int = 0, *, classes: int = 0, embedding: int | None = None, **options
    ):
        # Parts keep their arguments, and files can store only Python's own numbers.
        features, context, classes, embedding = map(plain, (features, context, classes, embedding))
        options = {name: plain(value) for name, value in options.items()}
        _check(make, features, context, options)
        width = (16 if classes else None) if embedding is None else embedding
        if width is None:
            return make(features, context, **options)
        check_integer(make.__name__, "embedding", width, 1, "the width must be 1 or more; pass 16.")
        read = ContextEmbedding(width, classes=classes, context=context)
        flow = make(features, width, **options)
        return NormalizingFlow(flow.bijection, flow.base, embedding=read)

    known, added = inspect.signature(make), inspect.signature(preset, follow_wrapped=False)
    *own, last = known.parameters.values()
    last = [last] if last.kind is last.VAR_KEYWORD else []
    own = [*own, *([] if last else [list(known.parameters.values())[-1]])]
    kinds = {"classes": "int", "embedding": "int | None"}  # the annotations, which functools.wraps has replaced
    more = [added.parameters[name].replace(annotation=kind) for name, kind in kinds.items()]
    # On both: documentation tools show the signature of the wrapped function.
    preset.__signature__ = make.__signature__ = known.replace(parameters=[*own, *more, *last])
    return preset


NETWORK = ("hidden", "activation", "residual", "inverse")
"""The options of the layers' networks."""


def _check(make: Callable[..., NormalizingFlow], features: int | None, context: int, options: dict) -> None:
    """Raises for invalid sizes, and for keywords that neither the preset nor its networks have."""
    name, parameters = make.__name__, inspect.signature(make).parameters
    known = [key for key, each in parameters.items() if each.kind is each.KEYWORD_ONLY]
    known += NETWORK if any(each.kind is each.VAR_KEYWORD for each in parameters.values()) else ()
    known += ["context"]
    check_keywords(name, options, ["features", *known], known)
    if features is None:
        raise TypeError(f"{name}(): the number of features is missing; pass for example {name}(2).")
    why = f"the number of features must be a whole number, 1 or more; pass for example {name}(2)."
    check_integer(name, "features", features, 1, why)
    check_integer(name, "context", context, 0, "this is the width of a context vector, 0 for none; pass context=3.")
    if "layers" in options:
        check_integer(name, "layers", options["layers"], 1, "a flow has one layer or more; pass layers=5.")


@_conditioned
def nice(features: int, context: int = 0, *, layers: int = 4, **network) -> NormalizingFlow:
    """Builds NICE: additive couplings of alternating halves, and a learned scale of every feature at the end.

    The arguments are those of :func:`nsf` with the same names.

    Source: Dinh et al., NICE: Non-linear Independent Components Estimation, 2014, arXiv:1410.8516.

    Example:
        >>> nice(4).cost()
        FlowCost(log_prob=4, sample=4, sample_and_log_prob=4)
    """
    return _flow([*_couplings(Additive, features, context, layers, network), Elementwise(Affine(), features)])


@_conditioned
def realnvp(features: int, context: int = 0, *, layers: int = 8, clamp: float = 5.0, **network) -> NormalizingFlow:
    """Builds RealNVP: affine couplings of alternating halves.

    The other arguments are those of :func:`nsf`.

    Args:
        clamp: largest log-scale of a layer, up and down.

    Source: Dinh et al., Density estimation using Real NVP, 2016, arXiv:1605.08803.

    Example:
        >>> realnvp(4, context=2, hidden=(32, 32)).context_shape
        torch.Size([2])
    """
    return _flow(_couplings(lambda: Affine(clamp), features, context, layers, network))


@_conditioned
def maf(features: int, context: int = 0, *, layers: int = 5, clamp: float = 5.0, **network) -> NormalizingFlow:
    """Builds a masked autoregressive flow: affine layers, in which the order of the features alternates.

    The other arguments are those of :func:`nsf`.

    Args:
        clamp: largest log-scale of a layer, up and down.

    Source: Papamakarios et al., Masked Autoregressive Flow for Density Estimation, 2017, arXiv:1705.07057.

    Example:
        >>> maf(64, context=3).cost()  # sampling is one pass as well, in 64 steps
        FlowCost(log_prob=5, sample=5, sample_and_log_prob=5)
    """
    return _flow(_autoregressives(lambda: Affine(clamp), features, context, layers, network))


@_conditioned
def iaf(features: int, context: int = 0, *, layers: int = 5, clamp: float = 5.0, **network) -> NormalizingFlow:
    """Builds an inverse autoregressive flow: :func:`maf` with its directions exchanged, so sampling is one pass.

    The other arguments are those of :func:`nsf`.

    Args:
        clamp: largest log-scale of a layer, up and down.

    Source: Kingma et al., Improving Variational Inference with Inverse Autoregressive Flow, 2016, arXiv:1606.04934.

    Example:
        >>> iaf(3).sample((5,)).shape
        torch.Size([5, 3])
    """
    members = _autoregressives(lambda: Affine(clamp), features, context, layers, network)
    return _flow([Inverse(each) for each in members])


@_conditioned
def nsf(
    features: int,
    context: int = 0,
    *,
    layers: int = 5,
    bins: int = 8,
    bound: float = 5.0,
    autoregressive: bool = False,
    linear: bool = True,
    **network,
) -> NormalizingFlow:
    """Builds a neural spline flow: rational-quadratic couplings, or autoregressive layers.

    Args:
        features: length of an event.
        context: width of the vector that the flow is conditioned on; 0 for none.
        layers: number of layers.
        bins: number of bins of every spline.
        bound: the splines act on [-bound, bound]; outside they are the identity.
        autoregressive: whether layers are autoregressive. They are more expressive than couplings, but sampling
            computes one feature after another. A flow of one feature always has them.
        linear: whether an LU layer mixes the features between layers.
        classes: number of class labels that the flow is conditioned on, in place of ``context``; 0 for none.
        embedding: width of a ``fields.ContextEmbedding`` that embeds labels or vectors; it also has a vector for
            "no condition". Default: 16 for labels; vectors are read directly.
        **network: options of the layers' networks: ``hidden``, ``activation`` and ``residual``, see
            :class:`Conditioner`, and ``inverse`` of autoregressive layers, see :class:`Autoregressive`.

    Raises:
        TypeError: if ``features`` is missing or an option is unknown.
        ValueError: if a size is out of range.

    Source: Durkan et al., Neural Spline Flows, 2019, arXiv:1906.04032.

    Example:
        >>> nsf(6, layers=5, hidden=(64, 64), bins=8).sample((2,)).shape
        torch.Size([2, 6])
        >>> nsf(6, classes=10).context_shape  # a class label
        torch.Size([])
    """
    family = lambda: RationalQuadratic(bins, bound)
    make = _autoregressives if autoregressive or features == 1 else _couplings
    return _flow(make(family, features, context, layers, network), mixed=linear)


@_conditioned
def naf(features: int, context: int = 0, *, layers: int = 3, units: int = 16, **network) -> NormalizingFlow:
    """Builds a neural autoregressive flow of deep sigmoidal functions; sampling uses Newton's method.

    The other arguments are those of :func:`nsf`.

    Args:
        units: number of sigmoids per layer of a function.

    Source: Huang et al., Neural Autoregressive Flows, 2018, arXiv:1804.00779.

    Example:
        >>> naf(2, layers=1).log_prob(naf(2).sample((3,))).shape
        torch.Size([3])
    """
    return _flow(_autoregressives(lambda: SigmoidalNetwork(units), features, context, layers, network))


@_conditioned
def unaf(
    features: int,
    context: int = 0,
    *,
    layers: int = 3,
    signal: int = 16,
    integrand: Sequence[int] = (64, 64),
    **network,
) -> NormalizingFlow:
    """Builds an unconstrained neural autoregressive flow: functions that are integrals of positive networks.

    The other arguments are those of :func:`nsf`.

    Args:
        signal: how many numbers of the conditioner each positive network reads.
        integrand: widths of the hidden layers of the positive networks.

    Source: Wehenkel and Louppe, Unconstrained Monotonic Neural Networks, 2019, arXiv:1908.05164.

    Example:
        >>> unaf(2, layers=1, integrand=(16,)).sample((3,)).shape
        torch.Size([3, 2])
    """
    family = lambda: IntegratedNetwork(signal, integrand)
    return _flow(_autoregressives(family, features, context, layers, network))


@_conditioned
def sospf(
    features: int, context: int = 0, *, layers: int = 3, degree: int = 4, polynomials: int = 3, **network
) -> NormalizingFlow:
    """Builds a sum-of-squares polynomial flow.

    The other arguments are those of :func:`nsf`.

    Args:
        degree: degree of the polynomials that are squared.
        polynomials: number of squared polynomials per function.

    Source: Jaini et al., Sum-of-Squares Polynomial Flow, 2019, arXiv:1905.02325.

    Example:
        >>> sospf(2, layers=1).sample((3,)).shape
        torch.Size([3, 2])
    """
    return _flow(_autoregressives(lambda: SumOfSquares(degree, polynomials), features, context, layers, network))


@_conditioned
def bpf(features: int, context: int = 0, *, layers: int = 3, degree: int = 16, **network) -> NormalizingFlow:
    """Builds a Bernstein polynomial flow.

    The other arguments are those of :func:`nsf`.

    Args:
        degree: degree of the polynomials.

    Source: Ramasinghe et al., Robust normalizing flows using Bernstein-type polynomials, 2021, arXiv:2102.03509.

    Example:
        >>> bpf(2, layers=1).sample((3,)).shape
        torch.Size([3, 2])
    """
    return _flow(_autoregressives(lambda: Bernstein(degree), features, context, layers, network))


@_conditioned
def gf(features: int, context: int = 0, *, layers: int = 6, components: int = 8, **network) -> NormalizingFlow:
    """Builds a Gaussianization flow: rotations, and between them a mixture of logistics for every feature.

    The other arguments are those of :func:`nsf`.

    Args:
        components: number of logistics per mixture.

    Source: Meng et al., Gaussianization Flows, 2020, arXiv:2003.01941.

    Example:
        >>> gf(2).cost()  # no network at all
        FlowCost(log_prob=0, sample=0, sample_and_log_prob=0)
    """
    members: list[Bijection] = []
    for _ in range(layers):
        rotation = Orthogonal(features)
        nn.init.normal_(rotation.weight)  # from the identity, training would hardly rotate, and not mix the features
        members += [rotation, Elementwise(MixtureLogistic(components), features, context=context, **network)]
    return _flow(members)


@_conditioned
def flowpp(features: int, context: int = 0, *, layers: int = 6, components: int = 8, **network) -> NormalizingFlow:
    """Builds the couplings of Flow++: mixtures of logistics, with LU layers between; sampling uses Newton's method.

    The other arguments are those of :func:`nsf`.

    Args:
        components: number of logistics per mixture.

    Source: Ho et al., Flow++: Improving Flow-Based Generative Models with Variational Dequantization and Architecture
    Design, 2019, arXiv:1902.00275.

    Example:
        >>> flowpp(2, layers=2).sample((3,)).shape
        torch.Size([3, 2])
    """
    members = _couplings(lambda: MixtureLogistic(components), features, context, layers, network)
    return _flow(members, mixed=True)


@_conditioned
def planar(features: int, context: int = 0, *, layers: int = 16) -> NormalizingFlow:
    """Builds a planar flow: densities in closed form; sampling solves one scalar equation per layer.

    The arguments are those of :func:`nsf` with the same names.

    Source: Rezende and Mohamed, Variational Inference with Normalizing Flows, 2015, arXiv:1505.05770.

    Example:
        >>> planar(2, layers=2).sample((3,)).shape
        torch.Size([3, 2])
    """
    return _flow([Planar(features, context=context) for _ in range(layers)])


@_conditioned
def radial(features: int, context: int = 0, *, layers: int = 16) -> NormalizingFlow:
    """Builds a radial flow: densities and samples in closed form.

    The arguments are those of :func:`nsf` with the same names.

    Source: Rezende and Mohamed, Variational Inference with Normalizing Flows, 2015, arXiv:1505.05770.

    Example:
        >>> radial(2, layers=2).sample((3,)).shape
        torch.Size([3, 2])
    """
    return _flow([Radial(features, context=context) for _ in range(layers)])


@_conditioned
def sylvester(features: int, context: int = 0, *, layers: int = 8, directions: int | None = None) -> NormalizingFlow:
    """Builds a Sylvester flow: planar flows along several directions at once.

    The other arguments are those of :func:`nsf`.

    Args:
        directions: number of directions along which a layer moves points. Default: all.

    Source: van den Berg et al., Sylvester Normalizing Flows for Variational Inference, 2018, arXiv:1803.05649.

    Example:
        >>> sylvester(2, layers=2).sample((3,)).shape
        torch.Size([3, 2])
    """
    return _flow([Sylvester(features, directions, context) for _ in range(layers)])


PRESETS: dict[str, Callable[..., NormalizingFlow]] = {
    each.__name__: each
    for each in (nice, realnvp, maf, iaf, nsf, naf, unaf, sospf, bpf, gf, flowpp, planar, radial, sylvester)
}
"""All presets by name."""


def _couplings(
    family: Callable[[], Univariate], features: int, context: int, layers: int, network: dict
) -> Sequence[Bijection]:
    """Builds couplings that transform the second half, the first, and so on; for one feature, elementwise layers."""
    if features == 1:
        return [Elementwise(family(), 1, context=context, **network) for _ in range(layers)]
    half = features // 2
    masks = [[(i >= half) == (number % 2 == 0) for i in range(features)] for number in range(layers)]
    return [Coupling(family(), features, context=context, mask=mask, **network) for mask in masks]


def _autoregressives(
    family: Callable[[], Univariate], features: int, context: int, layers: int, network: dict
) -> Sequence[Bijection]:
    """Builds autoregressive layers in the order of the features, then in reverse order, and so on."""
    orders = [list(range(features))[:: 1 if number % 2 == 0 else -1] for number in range(layers)]
    return [Autoregressive(family(), features, context=context, order=order, **network) for order in orders]


def _flow(members: Sequence[Bijection], mixed: bool = False) -> NormalizingFlow:
    if mixed:
        mixers = [LULinear(*each.event_shape) for each in members[1:]]
        members = [members[0], *(part for pair in zip(mixers, members[1:]) for part in pair)]
    return NormalizingFlow(Compose(*members), Normal(members[-1].latent_shape))
