"""Posterior draws in the format of ArviZ: an InferenceData for ArviZ 0.x, a DataTree for 1.x."""

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
    r"""Converts posterior draws to ArviZ, with their log-densities and the observation.

    The result has the groups ``posterior`` (dimensions ``chain``, ``draw``), ``sample_stats`` with ``lp`` if
    ``log_density`` is given, and ``observed_data`` if ``observed`` is given.

    With ``log_weights`` the draws are first resampled with replacement, in proportion to their weights :math:`w_i`. The
    number of draws stays the same. The effective sample size :math:`(\sum w_i)^2 / \sum w_i^2` is stored in the
    attribute ``importance_ess`` of the posterior.

    Args:
        samples: the draws ``[draws, *event]``, or a dict of such tensors by variable.
        log_density: their log-densities ``[draws]``.
        observed: the observation, a tensor of any shape or a dict of tensors.
        names: names for the entries of ``samples [draws, D]``, each of which becomes a variable. Default: one variable
            ``x``.
        chains: number of chains into which the draws are split, in order. Draws of a flow are independent, so this only
            serves the functions of ArviZ that compare chains.
        log_weights: importance weights ``[draws]``: the logarithm of target over proposal, up to a constant.
        generator: source of random numbers for the resampling. Default: torch's.
        attrs: more attributes of the posterior.

    Cost: one copy to the host.

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
                    f"to_arviz({name} of shape {list(value.shape)}): pass one number per draw, of shape [{count}]."
                )
            draws[name] = len(value)
    if count == 0 or len(set(draws.values())) > 1:
        raise ValueError(
            f"to_arviz: the numbers of draws differ, or are zero: {draws}; pass tensors of shape [draws, *event]."
        )
    if not is_integer(chains, 1) or count % chains:
        raise ValueError(
            f"to_arviz(chains={chains!r}): {count} draws cannot be split into equal chains; pass a divisor of {count}."
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
    """Draws from a flow's posterior given one context, and converts the draws and their log-densities to ArviZ.

    With ``target`` the draws are weighted by target over flow and resampled. This corrects a flow that is almost right.
    Then ``lp`` is the target. Check the attribute ``importance_ess``: if it is small, do not trust the result.

    Args:
        flow: the flow, whose samples are parameters and whose context is the observation.
        context: one context ``[*context_shape]``; None for an unconditional flow.
        draws: number of draws.
        target: a function from ``x [draws, *event]`` to the log-density ``[draws]`` of the true posterior, up to a
            constant: ``log p(context | x) + log p(x)``.
        observed: the observation. Default: the context.

    The other arguments are those of :func:`to_arviz`.

    Cost: ``draws`` samples with their log-densities in one batch (only samples if the flow has no density), and one
    call of ``target``.

    Raises:
        ValueError: for a batch of contexts, for a ``target`` if the flow has no exact density or the target returns
            another shape, and as :func:`to_arviz`.

    Example:
        >>> import cflow
        >>> flow = cflow.discrete.nsf(2, context=3, layers=1, hidden=(8,))
        >>> data = posterior(flow, torch.zeros(3), 40)
        >>> data.posterior["x"].shape, data.sample_stats["lp"].shape
        ((4, 10, 2), (4, 10))
    """
    if context is not None and flow.context_shape is not None and context.shape != flow.context_shape:
        raise ValueError(
            f"arviz.posterior(context of shape {list(context.shape)}): pass one context, of shape "
            f"{list(flow.context_shape)}, per call."
        )
    if target is not None and flow.likelihood != "exact":
        raise ValueError(
            f"arviz.posterior(target=...): importance weights need an exact density, and the flow's likelihood is "
            f"{flow.likelihood!r}; omit target."
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
                f"arviz.posterior(target=...): it returned shape {list(value.shape)}; return one log-density per draw, "
                f"{list(log_density.shape)}."
            )
        log_weights, log_density = value - log_density, value
    return to_arviz(
        x, log_density, observed=context if observed is None else observed, names=names, chains=chains,
        log_weights=log_weights, generator=generator, attrs={"inference_library": "cflow"},
    )  # fmt: skip


def _variables(samples: Tensor | Mapping[str, Tensor], names: Sequence[str] | None) -> dict[str, Tensor]:
    """Returns the variables by name."""
    if isinstance(samples, Mapping):
        if names is not None:
            raise ValueError(f"to_arviz(names={list(names)}): the samples are a dict and have names; omit names.")
        return dict(samples)
    if names is None:
        return {"x": samples}
    if samples.dim() != 2 or samples.shape[1] != len(names):
        raise ValueError(
            f"to_arviz(names={list(names)}): samples of shape {list(samples.shape)} do not have {len(names)} columns; "
            f"pass one name per column, or a dict of tensors."
        )
    return dict(zip(names, samples.unbind(1)))


def _normalised(log_weights: Tensor) -> Tensor:
    """Normalises weights in float64; a draw outside the target's support has weight zero."""
    log_weights = log_weights.detach().double()
    if log_weights.isnan().any() or not (log_weights.max() < torch.inf and log_weights.max() > -torch.inf):
        raise ValueError(
            f"to_arviz(log_weights from {log_weights.min().item():.4g} to {log_weights.max().item():.4g}): the largest "
            f"must be finite, and none NaN; check the target."
        )
    return log_weights.softmax(0)


def _from_dict() -> Callable:
    try:
        from arviz import from_dict
    except ImportError:
        try:
            from arviz_base import from_dict  # the part of ArviZ 1 that this function needs
        except ImportError as error:
            raise ImportError("cflow.integrations.arviz: arviz is not installed; pip install arviz.") from error
    return from_dict
