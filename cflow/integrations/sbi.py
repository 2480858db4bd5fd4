"""Flows as estimators of sbi: neural posterior and likelihood estimation, and flow matching posterior estimation.

Importing this module imports sbi, and with it zuko, which turns off the argument checks of ``torch.distributions``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Size, Tensor, nn

from cflow.bijections import Map, Standardise
from cflow.continuous.flow import ContinuousFlow
from cflow.flow import BaseFlow
from cflow.objectives import FlowMatching, MaximumLikelihood, Objective

try:
    from sbi.neural_nets.estimators.base import ConditionalDensityEstimator, ConditionalVectorFieldEstimator
except ImportError as error:
    raise ImportError(f"cflow.integrations.sbi: sbi is not installed ({error}); pip install sbi.") from error

__all__ = ["FlowEstimator", "VectorField", "as_density_estimator", "density_estimator", "vector_field"]


class FlowEstimator(ConditionalDensityEstimator):
    """Wraps a conditional flow as a density estimator of sbi. :func:`density_estimator` builds one.

    Args:
        flow: the flow; sbi calls it ``net``. Its context is the embedded condition.
        condition_shape: the shape of one condition.
        embedding_net: the network from conditions to contexts.
        objective: how the flow is trained.

    Shapes: those of sbi. ``input [S, B, *event]`` or ``[B, *event]``, ``condition [B, *condition]`` or
    ``[S, B, *condition]``, where B may be 1 in either. Log-densities are ``[S, B]``, samples are
    ``[*sample_shape, B, *event]``. Cost: a condition is embedded once, not once per sample.
    """

    def __init__(self, flow: BaseFlow, condition_shape: Size, embedding_net: nn.Module, objective: Objective):
        super().__init__(flow, flow.event_shape, condition_shape)
        self._embedding_net, self.objective = embedding_net, objective
        flow.record(objective)  # sbi's own loop trains it

    @property
    def embedding_net(self) -> nn.Module:
        """The network from conditions to contexts."""
        return self._embedding_net

    def log_prob(self, input: Tensor, condition: Tensor, **options) -> Tensor:
        """Computes the log-density of ``input`` given ``condition``; ``options`` are keywords of the flow."""
        self._check_input_shape(input)
        input = input if input.dim() > len(self.input_shape) + 1 else input[None]
        return self.net.log_prob(input, _contexts(self, condition), **options)

    def loss(self, input: Tensor, condition: Tensor) -> Tensor:
        """Computes the loss of the objective for each ``input`` given ``condition``."""
        return self.objective(self.net, input, _contexts(self, condition))

    def sample(self, sample_shape: Size, condition: Tensor, **options) -> Tensor:
        """Draws ``sample_shape`` samples for each ``condition``; ``options`` are keywords of the flow."""
        return self.net.sample(sample_shape, _contexts(self, condition), **options)

    def sample_and_log_prob(self, sample_shape: Size, condition: Tensor, **options) -> tuple[Tensor, Tensor]:
        """Draws as ``sample(sample_shape, condition, **options)`` and returns the log-densities as well."""
        return self.net.sample_and_log_prob(sample_shape, _contexts(self, condition), **options)


class VectorField(ConditionalVectorFieldEstimator):
    r"""Wraps a continuous flow as a vector field of sbi, in which time runs from data to noise.

    .. math:: v_{\text{sbi}}(t, \theta) = -s \odot v\bigl(1 - t, (\theta - m) / s\bigr), \qquad
        \theta_1 \sim \mathcal N(m, s^2)

    where m and s are the mean and the scale with which the flow standardises theta. sbi integrates the field with its
    own solver. Scores and stochastic sampling are not available. :func:`vector_field` builds a VectorField.

    Args:
        flow: the flow; sbi calls it ``net``. Its context is the embedded condition.
        condition_shape: the shape of one condition.
        embedding_net: the network from conditions to contexts.
        objective: how the flow is trained.
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
        """Computes the velocity at ``input`` and ``times`` of sbi, given ``condition``."""
        u = (input - self._mean_base[0]) / self._std_base[0]
        return -self._std_base[0] * self.net.velocity(1 - times, u, _contexts(self, condition))

    def ode_fn(self, input: Tensor, condition: Tensor, times: Tensor) -> Tensor:
        """Computes the velocity at ``input`` and ``times`` of sbi, given ``condition``, for its ODE solver."""
        return self(input, condition, times)

    def loss(self, input: Tensor, condition: Tensor, times: Tensor | None = None) -> Tensor:
        """Computes the loss for each ``input`` given ``condition``, at ``times`` of sbi or at random ones."""
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
    """Returns a function for the argument ``density_estimator`` of sbi's ``NPE`` and ``NLE``, which builds flows.

    Args:
        make: a preset such as ``discrete.nsf``, or any constructor ``make(features, context, **options)`` of a
            conditional flow over vectors. The flow may be continuous.
        likelihood: whether the flow models x given theta (``NLE``) instead of theta given x (``NPE``).
        embedding: a network from conditions to vectors ``[B, context]``, copied for each estimator; needed if
            conditions are not vectors.
        standardise: whether to standardise the modelled variable and the condition by the simulations: each feature
            separately, but images and series of conditions with one scale. Densities keep the original units.
        transform: transforms of the modelled variable, applied before it is standardised: for instance from the box of
            a prior to the whole line, so that no sample is outside.
        objective: how the flow is trained. Default: maximum likelihood. ``objectives.FlowMatching()`` trains a
            continuous flow without solving its equation, but later rounds of ``NPE`` need its density.
        **options: keywords of ``make``.

    Raises:
        ValueError: from the returned function: for parameters or data that are not vectors, for conditions that need an
            embedding, and for constant features.

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
    """Returns a function for the argument ``vf_estimator`` of sbi's ``FMPE``, which builds continuous flows.

    ``NPE(prior, density_estimator(make, objective=FlowMatching()))`` trains the same flow, and samples it with the
    flow's solver.

    Args:
        objective: flow matching, for instance with another coupling or distribution of times. Default:
            ``objectives.FlowMatching()``.

    The other arguments are those of :func:`density_estimator`.

    Raises:
        TypeError: from the returned function, if ``make`` does not return a continuous flow.
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
                f"vector_field: {type(flow).__name__} has no vector field; build a cflow.ContinuousFlow, or use "
                f"density_estimator with NPE."
            )
        if not getattr(flow.base, "is_standard", False) or len(flow.transform) > standardise:
            raise ValueError(
                "vector_field: sbi needs a standard normal base and no transforms; build such a flow, or use "
                "density_estimator with NPE."
            )
        return VectorField(flow, x.shape[1:], net, FlowMatching() if objective is None else objective)

    return build


def as_density_estimator(flow: BaseFlow) -> FlowEstimator:
    """Wraps a trained conditional flow for sbi: ``NPE(prior).build_posterior(as_density_estimator(flow))``.

    Args:
        flow: the flow, whose context is the condition.

    Raises:
        ValueError: for an unconditional flow.

    Example:
        >>> from cflow import discrete
        >>> as_density_estimator(discrete.maf(2, context=3)).condition_shape
        torch.Size([3])
    """
    if flow.context_shape is None:
        raise ValueError(
            "as_density_estimator: the flow is unconditional; build it with context=..., such as discrete.maf(2, "
            "context=3)."
        )
    return FlowEstimator(flow, flow.context_shape, nn.Identity(), MaximumLikelihood())


def _contexts(estimator, condition: Tensor) -> Tensor:
    """Computes the contexts ``[*batch, *context]`` of conditions ``[*batch, *condition]``."""
    estimator._check_condition_shape(condition)
    batch = condition.shape[: condition.dim() - len(estimator.condition_shape)]
    context = estimator.embedding_net(condition.reshape(-1, *estimator.condition_shape))
    return context.reshape(*batch, *estimator.net.context_shape)


class _Encode(nn.Module):
    """Applies a transform without its log-determinant, which conditions do not need."""

    def __init__(self, transform: Map):
        super().__init__()
        self.transform = transform

    def forward(self, x: Tensor) -> Tensor:
        return self.transform.encode(x)[0]


def _assemble(name: str, make, modelled, condition, embedding, standardise, transform, options):
    """Builds a flow for simulations, and the network from conditions to its contexts."""
    if modelled.dim() != 2 or (condition.dim() != 2 and embedding is None):
        inside = modelled.dim() == 2
        which, shape = ("the condition", condition) if inside else ("the modelled variable", modelled)
        raise ValueError(
            f"{name}: {which} has shape {list(shape.shape[1:])} and is not a vector; "
            + ("pass embedding=, a network that returns vectors." if inside else "flatten it in the simulator.")
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
            f"{name}: the embedding returns {list(width)} for one condition, not a vector; end it with "
            f"torch.nn.Flatten()."
        )
    flow = make(modelled.shape[1], width[0], **options)
    transforms, inner = list(transform), modelled
    for each in transforms:
        inner = each.encode(inner)[0]
    if standardise:
        transforms.append(Standardise.fit(inner))
    return (flow.with_transform(*transforms) if transforms else flow), net
