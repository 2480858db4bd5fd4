"""Posterior draws as ArviZ keeps them: an InferenceData for ArviZ 0.x, a DataTree for 1.x."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from cflow.arguments import is_integer
from cflow.flow import Flow
from cflow.shapes import as_shape

__all__ = ["posterior", "to_arviz"]


def to_arviz(
    samples: Tensor | Mapping[str, Tensor],
    log_density: Tensor | None = None,
    *,
    observed: Tensor | Mapping[str, Tensor] | None = None,
    names: Sequence[str] | None = None,
    chains: int = 1,
    log_weights: Tensor | None = None,
    generator: torch.Generator | None = None,
    attrs: Mapping | None = None,
):
    r"""Hands posterior draws to ArviZ, with their log-density and the observation.

    The result has the groups ``posterior`` (dimensions ``chain``, ``draw``), ``sample_stats`` with ``lp`` where
    ``log_density`` is given, and ``observed_data``. Draws of a flow are independent, so that ``chains`` merely splits
    them, the first part to the first chain, for what ArviZ computes by chain.

    With ``log_weights`` (the logarithm of target over proposal, up to a constant) the draws are first resampled with
    replacement, as many as there are, in proportion to their weights :math:`w_i`; the effective sample size
    :math:`(\sum w_i)^2 / \sum w_i^2` goes to the posterior's attributes as ``importance_ess``.

    Shapes: ``samples`` ``[draws, *event]``, or a dict of such; ``log_density`` and ``log_weights`` ``[draws]``;
    ``observed`` of any shape. Cost: one copy to the host.

    Args:
        names: names of the entries of ``samples [draws, D]``, each a variable of its own; one variable ``x`` unless
            given.
        attrs: more attributes of the posterior.

    Raises:
        ValueError: if numbers of draws differ, ``chains`` does not divide them, names do not fit, or no weight is
            finite.
        ImportError: if ArviZ is not installed.

    Source: Kumar et al., ArviZ a unified library for exploratory analysis of Bayesian models in Python, 2019, JOSS;
    Rubin, Using the SIR algorithm to simulate posterior distributions, 1988 (the resampling).

    Example:
        >>> data = to_arviz(torch.randn(100, 2), names=["mass", "spin"], chains=4)
        >>> data.posterior["mass"].shape
        (4, 25)
    """
    variables = _variables(samples, names)
    draws = {name: value.shape[:1].numel() if value.dim() else 0 for name, value in variables.items()}
    count = next(iter(draws.values()), 0)
    for name, value in {"log_density": log_density, "log_weights": log_weights}.items():
        if value is not None:
            if value.dim() != 1:
                raise ValueError(
                    f"to_arviz({name} of shape {list(value.shape)}): it is one number per draw; pass shape [{count}]."
                )
            draws[name] = len(value)
    if count == 0 or len(set(draws.values())) > 1:
        raise ValueError(
            f"to_arviz: the first dimension counts the draws, one or more and as many everywhere; here they are "
            f"{draws}; pass tensors of shape [draws, *event]."
        )
    if not is_integer(chains, 1) or count % chains:
        raise ValueError(
            f"to_arviz(chains={chains!r}): {count} draws are split into chains of one length; pass a divisor of "
            f"{count}, or draw a multiple of {chains}."
        )
    attrs = dict(attrs or {})
    if log_weights is not None:
        weights = _normalised(log_weights)
        attrs["importance_ess"] = float(1 / weights.square().sum())
        chosen = torch.multinomial(weights, count, replacement=True, generator=generator)
        variables = {name: value[chosen] for name, value in variables.items()}
        log_density = None if log_density is None else log_density[chosen]
    by_chain = lambda value: value.detach().cpu().unflatten(0, (chains, -1)).numpy()
    groups = {"posterior": {name: by_chain(value) for name, value in variables.items()}}
    if log_density is not None:
        groups["sample_stats"] = {"lp": by_chain(log_density)}
    if observed is not None:
        observed = observed if isinstance(observed, Mapping) else {"observed": observed}
        groups["observed_data"] = {name: value.detach().cpu().numpy() for name, value in observed.items()}
    from_dict = _from_dict()
    if "data" in inspect.signature(from_dict).parameters:  # ArviZ 1
        return from_dict(groups, attrs={"posterior": attrs})
    return from_dict(**groups, posterior_attrs=attrs)


def posterior(
    flow: Flow,
    context: Tensor | None = None,
    draws: int = 1000,
    *,
    target: Callable[[Tensor], Tensor] | None = None,
    observed: Tensor | Mapping[str, Tensor] | None = None,
    names: Sequence[str] | None = None,
    chains: int = 4,
    generator: torch.Generator | None = None,
):
    """Draws from a flow's posterior given one context and hands it to ArviZ, log-densities included.

    ``observed`` is the context unless given. With ``target``, the log of the true posterior's density up to a constant
    (``log p(context | x) + log p(x)`` of ``x [draws, *event]``), the draws are weighted by target over flow and
    resampled, which corrects a flow that is nearly right, and ``lp`` is the target; look at the attribute
    ``importance_ess`` before trusting it.

    Shapes: ``context [*context_shape]``. Cost: ``draws`` samples with their log-density in one batch (samples alone
    where the flow has none), and one call of ``target``.

    Raises:
        ValueError: for a batch of contexts, a ``target`` where the flow has no exact density or that gives another
            shape, and as :func:`to_arviz` does.

    Example:
        >>> import cflow
        >>> flow = cflow.discrete.nsf(2, context=3, layers=1, hidden=(8,))
        >>> data = posterior(flow, torch.zeros(3), 40)
        >>> data.posterior["x"].shape, data.sample_stats["lp"].shape
        ((4, 10, 2), (4, 10))
    """
    if context is not None and flow.context_shape is not None and context.shape != flow.context_shape:
        raise ValueError(
            f"arviz.posterior(context of shape {list(context.shape)}): a posterior is that of one observation, of "
            f"shape {list(flow.context_shape)}; call it for each context by itself."
        )
    if target is not None and flow.likelihood != "exact":
        raise ValueError(
            f"arviz.posterior(target=...): importance weights divide by the flow's density, and here it is "
            f"{flow.likelihood!r}; omit target, or take a flow whose likelihood is 'exact'."
        )
    shape, log_weights, log_density = as_shape(draws), None, None
    if flow.likelihood == "none":
        x = flow.sample(shape, context, generator=generator)
    else:
        x, log_density = flow.sample_and_log_prob(shape, context, generator=generator)
    if target is not None:
        value = target(x)
        if value.shape != log_density.shape:
            raise ValueError(
                f"arviz.posterior(target=...): it gave shape {list(value.shape)} for draws of shape {list(x.shape)}; "
                f"return one log-density per draw, {list(log_density.shape)}."
            )
        log_weights, log_density = value - log_density, value
    return to_arviz(
        x, log_density, observed=context if observed is None else observed, names=names, chains=chains,
        log_weights=log_weights, generator=generator, attrs={"inference_library": "cflow"},
    )  # fmt: skip


def _variables(samples: Tensor | Mapping[str, Tensor], names: Sequence[str] | None) -> dict[str, Tensor]:
    """Gives each variable by its name."""
    if isinstance(samples, Mapping):
        if names is not None:
            raise ValueError(
                f"to_arviz(names={list(names)}): the samples are a dict, which names them already; omit names."
            )
        return dict(samples)
    if names is None:
        return {"x": samples}
    if samples.dim() != 2 or samples.shape[1] != len(names):
        raise ValueError(
            f"to_arviz(names={list(names)}): {len(names)} names are those of samples [draws, {len(names)}], not of "
            f"shape {list(samples.shape)}; pass one name per entry, or a dict of tensors."
        )
    return dict(zip(names, samples.unbind(1)))


def _normalised(log_weights: Tensor) -> Tensor:
    """Normalises weights in float64; a draw outside of the target's support weighs nothing."""
    log_weights = log_weights.detach().double()
    if log_weights.isnan().any() or not (log_weights.max() < torch.inf and log_weights.max() > -torch.inf):
        raise ValueError(
            f"to_arviz(log_weights from {log_weights.min().item():.4g} to {log_weights.max().item():.4g}): weights are "
            f"compared with the largest, which must be finite, and a NaN with nothing; the target has no support where "
            f"the draws are, or is not defined there."
        )
    return log_weights.softmax(0)


def _from_dict() -> Callable:
    try:
        from arviz import from_dict
    except ImportError:
        try:
            from arviz_base import from_dict  # the part of ArviZ 1 that this takes
        except ImportError as error:
            raise ImportError(
                "cflow.integrations.arviz: neither arviz nor arviz_base is installed; pip install arviz."
            ) from error
    return from_dict
