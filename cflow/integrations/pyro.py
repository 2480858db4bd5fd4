"""Flows in Pyro: as priors and likelihoods, and as guides of variational inference."""

from __future__ import annotations

import torch
from torch import Size, Tensor
from torch.distributions import Distribution, constraints

from cflow.distribution import FlowDistribution
from cflow.flow import Flow
from cflow.invertible_flow import BaseInvertibleFlow

_validates = Distribution._validate_args
try:
    from pyro.distributions.torch_distribution import TorchDistributionMixin
    from pyro.infer.autoguide import AutoContinuous
    from pyro.infer.autoguide.initialization import init_to_median
except ImportError as error:
    raise ImportError(
        "cflow.integrations.pyro: Pyro is not installed (or not the whole of it); pip install pyro-ppl."
    ) from error
finally:
    Distribution.set_default_validate_args(_validates)  # which importing Pyro turns on for all of torch

__all__ = ["AutoFlow", "PyroFlow", "as_pyro"]


def as_pyro(flow: Flow, context: Tensor | None = None, *, support: constraints.Constraint | None = None) -> PyroFlow:
    """Gives the distribution of a flow's data (given a context) for ``pyro.sample``.

    The batch of the context is the batch of the distribution; an unconditional flow is drawn anew for every row of a
    plate. A log-density that came with a draw is used when the draw is scored, so that a guide takes one pass.

    Register the parameters with ``pyro.module("flow", flow)`` where they are to be trained. Whatever samples by the
    density (HMC, importance sampling) needs a flow whose ``likelihood`` is ``"exact"``.

    Args:
        support: where the data lie, so that HMC and guides move in coordinates without bounds. Unless given it is
            ``flow().support``: what the flow's transforms bound (``bijections.Logit``). Its event dimensions are made
            the flow's.

    Raises:
        ValueError: for a flow without density, and for a context that does not fit.
        TypeError: if ``support`` is not one of torch's constraints.

    Source: Bingham et al., Pyro: Deep Universal Probabilistic Programming, 2018, arXiv:1810.09538.

    Example:
        >>> import cflow, pyro
        >>> flow = cflow.discrete.nsf(2, layers=1, hidden=(8,))
        >>> with pyro.plate("rows", 5):
        ...     x = pyro.sample("x", as_pyro(flow))
        >>> x.shape
        torch.Size([5, 2])
    """
    if flow.likelihood == "none":
        raise ValueError(
            f"as_pyro({type(flow).__name__}): this flow has no density, by which Pyro scores every site; take a flow "
            f"with one, such as a ContinuousFlow with bases.Normal."
        )
    return PyroFlow(flow, context, support=support)


class PyroFlow(FlowDistribution, TorchDistributionMixin):
    """A flow's distribution with what Pyro asks of one; made by :func:`as_pyro`."""

    def __init__(self, flow, context=None, batch_shape=None, validate_args=None, *, support=None):
        if support is not None and not isinstance(support, constraints.Constraint):
            raise TypeError(
                f"as_pyro(support={support!r}): a constraint says where data lie; pass "
                f"torch.distributions.constraints.unit_interval, say."
            )
        self._within, self._drawn = support, None
        super().__init__(flow, context, batch_shape, validate_args)

    @property
    def support(self) -> constraints.Constraint:
        if self._within is None:
            return super().support
        missing = len(self.event_shape) - self._within.event_dim
        return constraints.independent(self._within, missing) if missing > 0 else self._within

    def expand(self, batch_shape, _instance=None) -> PyroFlow:
        wide = super().expand(batch_shape)
        wide._within = self._within
        return wide

    def rsample(self, sample_shape=Size()) -> Tensor:  # noqa: B008 - torch's own signature
        """Draws samples; their log-density is kept for when it is asked for."""
        x, log_density = self.rsample_and_log_prob(sample_shape)
        self._drawn = x, log_density, torch.is_grad_enabled()
        return x

    def log_prob(self, value: Tensor) -> Tensor:
        """Computes log-densities; of the last draw, the first time, those that came with it."""
        drawn, self._drawn = self._drawn, None
        # What was drawn without a graph is evaluated anew where one is wanted.
        if drawn is not None and drawn[0] is value and (drawn[2] or not torch.is_grad_enabled()):
            return drawn[1]
        return super().log_prob(value)


class AutoFlow(AutoContinuous):
    """A guide that carries all latent variables of a model by one flow: ``SVI(model, AutoFlow(model, flow), ...)``.

    The flow lives on the latent variables one after the other in coordinates without bounds, as Pyro's automatic
    guides do; its parameters are registered with the guide. Pyro says how many there are: where the flow has another
    number of features, the error names both.

    Args:
        model: a Pyro model with continuous latent variables of fixed shapes.
        flow: a bijective flow over vectors, differentiable in its samples. A discrete-time flow that samples in one
            pass (``discrete.iaf``, ``discrete.realnvp``, ``discrete.nsf``) is the quickest.
        init_loc_fn: how Pyro finds a first point of the model.

    Raises:
        TypeError: if ``flow`` is not bijective.
        ValueError: if it is conditional, or its samples have no gradients; on the first call, if its features are not
            as many as the model's latent numbers.

    Source: Rezende and Mohamed, Variational Inference with Normalizing Flows, 2015, arXiv:1505.05770.

    Example:
        >>> import cflow, pyro
        >>> import pyro.distributions as dist
        >>> def model():
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        >>> guide = AutoFlow(model, cflow.discrete.realnvp(2, layers=2, hidden=(8,)))
        >>> {name: bool(value > 0) for name, value in guide().items() if name == "scale"}
        {'scale': True}
    """

    def __init__(self, model, flow: BaseInvertibleFlow, *, init_loc_fn=init_to_median):
        if not isinstance(flow, BaseInvertibleFlow):
            raise TypeError(
                f"AutoFlow(flow={type(flow).__name__}): a guide draws and scores by one bijective flow; pass a "
                f"ContinuousFlow or a discrete.NormalizingFlow."
            )
        if flow.context_shape is not None or not flow.has_rsample or len(flow.event_shape) != 1:
            raise ValueError(
                f"AutoFlow(flow with event_shape={tuple(flow.event_shape)}, context_shape={flow.context_shape}, "
                f"has_rsample={flow.has_rsample}): a guide is an unconditional flow over vectors whose samples have "
                f"gradients; build it with one feature per latent number, without a context and without dequantising."
            )
        super().__init__(model, init_loc_fn=init_loc_fn)
        self.flow = flow

    def get_posterior(self, *args, **kwargs) -> PyroFlow:
        """Gives the flow over all latent variables in coordinates without bounds."""
        if self.latent_dim != self.flow.event_shape[0]:
            raise ValueError(
                f"AutoFlow: the model has {self.latent_dim} latent numbers and the flow {self.flow.event_shape[0]} "
                f"features; build the flow with features={self.latent_dim}."
            )
        return as_pyro(self.flow)
