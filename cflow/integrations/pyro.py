"""Flows in Pyro: priors, likelihoods, and guides for variational inference."""

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
        "cflow.integrations.pyro: Pyro is not installed, or not completely; pip install pyro-ppl."
    ) from error
finally:
    Distribution.set_default_validate_args(_validates)  # importing Pyro turns it on for all of torch

__all__ = ["AutoFlow", "PyroFlow", "as_pyro"]


def as_pyro(flow: Flow, context: Tensor | None = None, *, support: constraints.Constraint | None = None) -> PyroFlow:
    """Returns the distribution of a flow's data, given a context, for ``pyro.sample``.

    An unconditional flow draws a new sample for every row of a plate. The log-density that was computed together with a
    draw is used when Pyro scores this draw, so a guide needs one pass.

    Register the parameters with ``pyro.module("flow", flow)`` to train them. Methods that use the density (HMC,
    importance sampling) need a flow whose ``likelihood`` is ``"exact"``.

    Args:
        flow: the flow.
        context: contexts ``[*batch, *context_shape]``, whose batch is that of the distribution; None for an
            unconditional flow.
        support: a constraint for the data, so that HMC and guides use unbounded coordinates. Default:
            ``flow().support``, the bounds of the flow's transforms (``bijections.Logit``). It gets the event dimensions
            of the flow.

    Raises:
        ValueError: for a flow without a density, and for a context that does not fit.
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
            f"as_pyro({type(flow).__name__}): this flow has no density, which Pyro needs; build it with bases.Normal."
        )
    return PyroFlow(flow, context, support=support)


class PyroFlow(FlowDistribution, TorchDistributionMixin):
    """Wraps a flow as a distribution of Pyro; :func:`as_pyro` returns one.

    Args:
        support: a constraint for the data. Default: ``flow().support``.

    The other arguments are those of :class:`cflow.FlowDistribution`.
    """

    def __init__(self, flow, context=None, batch_shape=None, validate_args=None, *, support=None):
        if support is not None and not isinstance(support, constraints.Constraint):
            raise TypeError(
                f"as_pyro(support={support!r}): not a constraint; pass one, such as "
                f"torch.distributions.constraints.unit_interval."
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
        """Draws samples ``[*sample_shape, *batch_shape, *event_shape]`` and keeps their log-densities."""
        x, log_density = self.rsample_and_log_prob(sample_shape)
        self._drawn = x, log_density, torch.is_grad_enabled()
        return x

    def log_prob(self, value: Tensor) -> Tensor:
        """Computes the log-densities of ``value``; for the last draw, the first time, those kept with it."""
        drawn, self._drawn = self._drawn, None
        # Log-densities without a graph are computed again if a graph is needed.
        if drawn is not None and drawn[0] is value and (drawn[2] or not torch.is_grad_enabled()):
            return drawn[1]
        return super().log_prob(value)


class AutoFlow(AutoContinuous):
    """A guide with one flow for all latent variables of a model: ``SVI(model, AutoFlow(model, flow), ...)``.

    The flow models the concatenated latent variables in unbounded coordinates, as Pyro's automatic guides do. Its
    parameters are registered with the guide. If the number of features of the flow is wrong, the error states the right
    one.

    Args:
        model: a Pyro model with continuous latent variables of fixed shapes.
        flow: a bijective flow over vectors whose samples have gradients. The fastest are discrete-time flows that
            sample in one pass (``discrete.iaf``, ``discrete.realnvp``, ``discrete.nsf``).
        init_loc_fn: Pyro's function for a first point of the model.

    Raises:
        TypeError: if ``flow`` is not bijective.
        ValueError: if it is conditional, or its samples have no gradients; on the first call, if the number of its
            features is not the number of the model's latent variables.

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
                f"AutoFlow(flow={type(flow).__name__}): not a bijective flow; pass a ContinuousFlow or a "
                f"discrete.NormalizingFlow."
            )
        if flow.context_shape is not None or not flow.has_rsample or len(flow.event_shape) != 1:
            raise ValueError(
                f"AutoFlow(flow with event_shape={tuple(flow.event_shape)}, context_shape={flow.context_shape}, "
                f"has_rsample={flow.has_rsample}): pass an unconditional flow over vectors with has_rsample=True."
            )
        super().__init__(model, init_loc_fn=init_loc_fn)
        self.flow = flow

    def get_posterior(self, *args, **kwargs) -> PyroFlow:
        """Returns the distribution of all latent variables in unbounded coordinates.

        Pyro's ``args`` and ``kwargs`` of the model are not used.
        """
        if self.latent_dim != self.flow.event_shape[0]:
            raise ValueError(
                f"AutoFlow: the model has {self.latent_dim} latent variables, the flow {self.flow.event_shape[0]} "
                f"features; build the flow with features={self.latent_dim}."
            )
        return as_pyro(self.flow)
