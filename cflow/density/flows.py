"""The names of flows that the estimators accept, and the objective that trains each."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable
from typing import Any

from cflow import bases, discrete, fields, paths
from cflow.continuous.flow import ContinuousFlow
from cflow.discrete import PRESETS
from cflow.divergence import Analytic
from cflow.flow import BaseFlow
from cflow.objectives import FFJORD, FlowMatching, MaximumLikelihood
from cflow.objectives.objective import Objective

__all__ = ["FLOWS", "make_flow", "objective_of"]


def ffjord(features: int, context: int = 0, **options: Any) -> ContinuousFlow:
    """Builds a velocity field between a normal distribution and the data, for maximum likelihood.

    ``options`` are arguments of the network. Its divergence has a closed form, so densities are exact and the training
    loss has no noise from a trace estimate.

    Source: Grathwohl et al., FFJORD, 2018, arXiv:1810.01367.
    """
    return ContinuousFlow(
        fields.ConcatSquash(features, context=context, **options),
        bases.Normal(features),
        divergence=Analytic(),
        context_shape=context or None,
    )


def flow_matching(features: int, context: int = 0, **options: Any) -> ContinuousFlow:
    """Builds a velocity field on straight paths, for flow matching; ``options`` are arguments of the network.

    Source: Lipman et al., Flow Matching for Generative Modeling, 2022, arXiv:2210.02747.
    """
    return ContinuousFlow(
        fields.MLP(features, context=context, **options),
        bases.Normal(features),
        path=paths.Linear(),
        context_shape=context or None,
    )


FLOWS: dict[str, Callable[..., BaseFlow]] = {
    **PRESETS,
    "nsf-ar": functools.partial(discrete.nsf, autoregressive=True),
    "ffjord": ffjord,
    "flow-matching": flow_matching,
}
"""The constructor of every flow by name, called as ``(features, context, **options)``."""


def make_flow(flow: Any, features: int, context: int, options: dict | None, where: str) -> BaseFlow:
    """Builds the flow of an estimator, from a name or from a constructor.

    Args:
        flow: one of the names in ``FLOWS``, or a constructor ``(features, context, **options) -> flow``.
        features: the number of columns of the data.
        context: the number of columns of the context; 0 for an unconditional flow.
        options: more arguments of the constructor, or None.
        where: the name of the caller, which starts error messages.

    Raises:
        ValueError: for an unknown name, and for a constructed flow of wrong shapes or without a density.
        TypeError: if ``flow`` is neither a name nor a constructor, or does not accept ``options``.
    """
    if isinstance(flow, str):
        if flow not in FLOWS:
            close = difflib.get_close_matches(flow.lower(), FLOWS, 1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise ValueError(f"{where}(flow={flow!r}): unknown flow{hint} The flows are {', '.join(FLOWS)}.")
        make = FLOWS[flow]
    elif callable(flow) and not isinstance(flow, BaseFlow):
        make = flow
    else:
        raise TypeError(
            f"{where}(flow={flow!r}): this is not a name or a function (features, context) -> flow; pass one, such as "
            f"'nsf'."
        )
    try:
        made = make(features, context, **(options or {}))
    except TypeError as error:
        if not options:
            raise
        raise TypeError(
            f"{where}(flow={flow!r}, flow_options={options}): the flow does not accept these ({error}); pass arguments "
            f"of its constructor, such as {{'layers': 3}}."
        ) from None
    shapes = (features,), (context,) if context else None
    found = tuple(made.event_shape), None if made.context_shape is None else tuple(made.context_shape)
    if found != shapes:
        raise ValueError(
            f"{where}(flow={getattr(flow, '__name__', flow)}): event_shape and context_shape are {found}, not "
            f"{shapes}; build the flow from (features, context)."
        )
    if made.likelihood == "none":
        raise ValueError(
            f"{where}(flow={getattr(flow, '__name__', flow)}): this flow has no density to fit; use a base such as "
            f"bases.Normal."
        )
    return made


def objective_of(flow: BaseFlow) -> Objective:
    """Returns the objective that trains a flow in an estimator.

    It is flow matching if the flow has a path, FFJORD for other continuous flows, and maximum likelihood for the rest.

    Args:
        flow: a flow with a density.
    """
    if getattr(flow, "path", None) is not None:
        return FlowMatching()
    return FFJORD(flow.divergence) if isinstance(flow, ContinuousFlow) else MaximumLikelihood()
