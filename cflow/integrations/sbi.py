"""Flows as estimators of sbi: neural posterior and likelihood estimation, and flow matching posterior estimation.

Importing this imports sbi, and with it zuko, which turns off the argument checks of ``torch.distributions``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from sbi.neural_nets.estimators.base import ConditionalDensityEstimator, ConditionalVectorFieldEstimator
from torch import Size, Tensor, nn

from cflow.bijections import Map, Standardise
from cflow.continuous.flow import ContinuousFlow
from cflow.flow import BaseFlow
from cflow.objectives import FlowMatching, MaximumLikelihood, Objective

__all__ = ["FlowEstimator", "VectorField", "as_density_estimator", "density_estimator", "vector_field"]


class FlowEstimator(ConditionalDensityEstimator):
    """Shows a conditional flow to sbi as a density estimator.

    ``net`` is the flow; its context is the condition, carried through ``embedding_net``.

    Shapes, as everywhere in sbi: ``input [S, B, *event]`` or ``[B, *event]``, ``condition [B, *condition]`` or
    ``[S, B, *condition]``, where B may be 1 in either; log-densities ``[S, B]``, samples ``[*shape, B, *event]``.
    Keywords go to the flow's methods. Cost: a condition is embedded once, not once per sample.
    """

    def __init__(self, flow: BaseFlow, condition_shape: Size, embedding_net: nn.Module, objective: Objective):
        super().__init__(flow, flow.event_shape, condition_shape)
        self._embedding_net, self.objective = embedding_net, objective
        flow.record(objective)  # sbi's own loop trains it

    @property
    def embedding_net(self) -> nn.Module:
        return self._embedding_net

    def log_prob(self, input: Tensor, condition: Tensor, **options) -> Tensor:
        self._check_input_shape(input)
        input = input if input.dim() > len(self.input_shape) + 1 else input[None]
        return self.net.log_prob(input, _contexts(self, condition), **options)

    def loss(self, input: Tensor, condition: Tensor) -> Tensor:
        return self.objective(self.net, input, _contexts(self, condition))

    def sample(self, sample_shape: Size, condition: Tensor, **options) -> Tensor:
        return self.net.sample(sample_shape, _contexts(self, condition), **options)

    def sample_and_log_prob(self, sample_shape: Size, condition: Tensor, **options) -> tuple[Tensor, Tensor]:
        return self.net.sample_and_log_prob(sample_shape, _contexts(self, condition), **options)


class VectorField(ConditionalVectorFieldEstimator):
    r"""Shows a continuous flow to sbi as a vector field, whose time runs from data to noise.

    .. math:: v_{\text{sbi}}(t, \theta) = -s \odot v\bigl(1 - t, (\theta - m) / s\bigr), \qquad
        \theta_1 \sim \mathcal N(m, s^2)

    with m and s the mean and scale of theta, in which the flow works. sbi integrates it with its own solver; scores and
    stochastic sampling are not offered.
    """

    SCORE_DEFINED = SDE_DEFINED = MARGINALS_DEFINED = False

    def __init__(self, flow: ContinuousFlow, condition_shape: Size, embedding_net: nn.Module, objective: FlowMatching):
        super().__init__(flow, flow.event_shape, condition_shape, embedding_net=embedding_net)
        self.objective = objective
        flow.record(objective)  # sbi's own loop trains it
        zero = torch.zeros(1, *flow.event_shape)
        self._mean_base = flow.postprocess(zero)[0]
        self._std_base = flow.postprocess(zero + 1)[0] - self._mean_base

    def forward(self, input: Tensor, condition: Tensor, times: Tensor) -> Tensor:
        u = (input - self._mean_base[0]) / self._std_base[0]
        return -self._std_base[0] * self.net.velocity(1 - times, u, _contexts(self, condition))

    def ode_fn(self, input: Tensor, condition: Tensor, times: Tensor) -> Tensor:
        return self(input, condition, times)

    def loss(self, input: Tensor, condition: Tensor, times: Tensor | None = None) -> Tensor:
        batch = self.objective.make_batch(self.net, input, _contexts(self, condition))
        if times is not None:
            batch.t = 1 - times
        return self.objective.loss(self.net, batch)


def density_estimator(
    make: Callable[..., BaseFlow],
    *,
    likelihood: bool = False,
    embedding: nn.Module | None = None,
    standardise: bool = True,
    transform: Sequence[Map] = (),
    objective: Objective | None = None,
    **options,
) -> Callable[[Tensor, Tensor], FlowEstimator]:
    """Gives what sbi's ``NPE`` and ``NLE`` take as ``density_estimator``: flows made by ``make(features, context)``.

    Args:
        make: a preset such as ``discrete.nsf``, or any constructor ``make(features, context, **options)`` of a
            conditional flow over vectors; a continuous flow does, too.
        likelihood: whether the flow models x given theta (``NLE``) instead of theta given x (``NPE``).
        embedding: a network from conditions to vectors ``[B, context]``, copied for each estimator; needed where
            conditions are not vectors.
        standardise: whether what is modelled and the condition are standardised by the simulations first, features each
            by itself (images and series of conditions by one scale); densities are those of the original units.
        transform: transforms of what is modelled, before it is standardised: for instance onto the whole line from a
            prior's box, so that no sample falls outside.
        objective: how the flow is trained; maximum likelihood unless given. ``objectives.FlowMatching()`` trains a
            continuous flow without solving it; later rounds of ``NPE`` ask for its density all the same.
        options: for ``make``.

    Raises:
        ValueError: from the function returned, for parameters or data that are no vectors, for conditions that need an
            embedding, and for features that are constant.

    Source: Greenberg et al., Automatic Posterior Transformation for Likelihood-Free Inference, 2019, arXiv:1905.07488;
    Papamakarios et al., Sequential Neural Likelihood, 2018, arXiv:1805.07226.

    Example:
        >>> from cflow import discrete
        >>> build = density_estimator(discrete.nsf, layers=3, hidden=(32, 32))
        >>> estimator = build(torch.randn(100, 2), torch.randn(100, 3))  # sbi.inference.NPE(prior, build) does this
        >>> estimator.sample((5,), torch.zeros(1, 3)).shape
        torch.Size([5, 1, 2])
    """

    def build(theta: Tensor, x: Tensor) -> FlowEstimator:
        modelled, condition = (x, theta) if likelihood else (theta, x)
        flow, net = _assemble(
            "density_estimator", make, modelled, condition, embedding, standardise, transform, options
        )
        return FlowEstimator(flow, condition.shape[1:], net, MaximumLikelihood() if objective is None else objective)

    return build


def vector_field(
    make: Callable[..., ContinuousFlow],
    *,
    embedding: nn.Module | None = None,
    standardise: bool = True,
    objective: FlowMatching | None = None,
    **options,
) -> Callable[[Tensor, Tensor], VectorField]:
    """Gives what sbi's ``FMPE`` takes as ``vf_estimator``: continuous flows made by ``make(features, context)``.

    ``NPE(prior, density_estimator(make, objective=FlowMatching()))`` trains the same flow, and samples it with the
    flow's own solver.

    Args: as :func:`density_estimator`; ``objective`` is flow matching, with another coupling or law of times if given.

    Raises:
        TypeError: from the function returned, if ``make`` does not give a continuous flow.
        ValueError: as :func:`density_estimator`, and if the flow's base is not a standard normal, or it has transforms.

    Source: Dax et al., Flow Matching for Scalable Simulation-Based Inference, 2023, arXiv:2305.17161.

    Example:
        >>> import cflow
        >>> from cflow import bases, fields, paths
        >>> def make(features, context):
        ...     field = fields.MLP(features, context=context)
        ...     base = bases.Normal(features)
        ...     return cflow.ContinuousFlow(field, base, path=paths.Linear(), context_shape=context)
        >>> field = vector_field(make)(torch.randn(100, 2), torch.randn(100, 3))
        >>> field.ode_fn(torch.zeros(5, 2), torch.zeros(1, 3), torch.tensor(0.3)).shape
        torch.Size([5, 2])
    """

    def build(theta: Tensor, x: Tensor) -> VectorField:
        flow, net = _assemble("vector_field", make, theta, x, embedding, standardise, (), options)
        if not isinstance(flow, ContinuousFlow):
            raise TypeError(
                f"vector_field: the flow is a {type(flow).__name__}, which has no vector field; pass a function that "
                f"makes a cflow.ContinuousFlow, or use density_estimator with NPE."
            )
        if not getattr(flow.base, "is_standard", False) or len(flow.transform) > standardise:
            raise ValueError(
                "vector_field: sbi follows the field itself from a normal, and this flow has another base or "
                "transforms of its own; use bases.Normal and no transform, or density_estimator with NPE."
            )
        return VectorField(flow, x.shape[1:], net, FlowMatching() if objective is None else objective)

    return build


def as_density_estimator(flow: BaseFlow) -> FlowEstimator:
    """Shows a conditional flow that is trained already to sbi, for ``NPE(prior).build_posterior(estimator)``.

    Raises:
        ValueError: for an unconditional flow.

    Example:
        >>> from cflow import discrete
        >>> as_density_estimator(discrete.maf(2, context=3)).condition_shape
        torch.Size([3])
    """
    if flow.context_shape is None:
        raise ValueError(
            "as_density_estimator: the flow is unconditional, and sbi asks for a density given a condition; build it "
            "with a context, as discrete.maf(2, context=3)."
        )
    return FlowEstimator(flow, flow.context_shape, nn.Identity(), MaximumLikelihood())


def _contexts(estimator, condition: Tensor) -> Tensor:
    """Carries conditions ``[*batch, *condition]`` to the flow's contexts ``[*batch, *context]``."""
    estimator._check_condition_shape(condition)
    batch = condition.shape[: condition.dim() - len(estimator.condition_shape)]
    context = estimator.embedding_net(condition.reshape(-1, *estimator.condition_shape))
    return context.reshape(*batch, *estimator.net.context_shape)


class _Encode(nn.Module):
    """Applies a transform without its log-determinant, which conditions have no use for."""

    def __init__(self, transform: Map):
        super().__init__()
        self.transform = transform

    def forward(self, x: Tensor) -> Tensor:
        return self.transform.encode(x)[0]


def _assemble(name: str, make, modelled, condition, embedding, standardise, transform, options):
    """Makes a flow for simulations, and the network that carries conditions to its contexts."""
    if modelled.dim() != 2 or (condition.dim() != 2 and embedding is None):
        which, shape = ("what is modelled", modelled) if modelled.dim() != 2 else ("the condition", condition)
        raise ValueError(
            f"{name}: {which} has shape {list(shape.shape[1:])}, and flows model and read vectors; "
            + ("flatten it in the simulator." if which[0] == "w" else "pass embedding=, a network that gives vectors.")
        )
    parts = [nn.Identity() if embedding is None else copy.deepcopy(embedding)]
    if standardise:
        pooled = tuple(range(1 - condition.dim(), 0)) if condition.dim() > 2 else ()
        parts.insert(0, _Encode(Standardise.fit(condition, pooled=pooled)))
    net = nn.Sequential(*parts)
    with torch.no_grad():
        width = net(condition[:2]).shape[1:]
    if len(width) != 1:
        raise ValueError(
            f"{name}: the embedding gives {list(width)} for one condition, and a flow reads one vector; end it with "
            f"torch.nn.Flatten()."
        )
    flow = make(modelled.shape[1], width[0], **options)
    transforms, inner = list(transform), modelled
    for each in transforms:
        inner = each.encode(inner)[0]
    if standardise:
        transforms.append(Standardise.fit(inner))
    return (flow.with_transform(*transforms) if transforms else flow), net
