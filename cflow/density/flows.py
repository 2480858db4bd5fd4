"""Flows by the names that the estimators take, and the objective each is trained by."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable
from typing import Any

from cflow import bases, discrete, fields, paths
from cflow.continuous.divergence import Analytic
from cflow.continuous.flow import ContinuousFlow
from cflow.discrete import PRESETS
from cflow.flow import BaseFlow
from cflow.objectives import FFJORD, FlowMatching, MaximumLikelihood
from cflow.objectives.objective import Objective

__all__ = ["FLOWS", "make_flow", "objective_of"]


def ffjord(features: int, context: int = 0, **options: Any) -> ContinuousFlow:
    """Makes a velocity field between a normal and the data, for maximum likelihood; ``options`` go to the network.

    The network's divergence is in closed form: densities are exact, and training is without its noise.

    Source: Grathwohl et al., FFJORD, 2018, arXiv:1810.01367.
    """
    return ContinuousFlow(
        fields.ConcatSquash(features, context=context, **options),
        bases.Normal(features),
        divergence=Analytic(),
        context_shape=context or None,
    )


def flow_matching(features: int, context: int = 0, **options: Any) -> ContinuousFlow:
    """Makes a velocity field on straight paths, for flow matching; ``options`` go to the network.

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
"""Every flow by name: called as ``(features, context, **options)``."""


def make_flow(flow: Any, features: int, context: int, options: dict | None, where: str) -> BaseFlow:
    """Builds the flow that an estimator was asked for, by name or by a constructor ``(features, context) -> flow``.

    Raises:
        ValueError: for an unknown name, or a constructor's flow of other shapes.
        TypeError: where ``flow`` is neither, or has no such option.
    """
    if isinstance(flow, str):
        if flow not in FLOWS:
            close = difflib.get_close_matches(flow.lower(), FLOWS, 1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise ValueError(f"{where}(flow={flow!r}): there is no such flow{hint} The flows are {', '.join(FLOWS)}.")
        make = FLOWS[flow]
    elif callable(flow) and not isinstance(flow, BaseFlow):
        make = flow
    else:
        raise TypeError(
            f"{where}(flow={flow!r}): a flow is named by a string, or made by a constructor (features, context) -> "
            f"flow once the data are known; pass one of {', '.join(FLOWS)}, or a function."
        )
    try:
        made = make(features, context, **(options or {}))
    except TypeError as error:
        if not options:
            raise
        raise TypeError(
            f"{where}(flow={flow!r}, flow_options={options}): the flow cannot be made of these ({error}); options are "
            f"arguments of its constructor, such as {{'layers': 3, 'hidden': (64, 64)}}."
        ) from None
    shapes = (features,), (context,) if context else None
    found = tuple(made.event_shape), None if made.context_shape is None else tuple(made.context_shape)
    if found != shapes:
        raise ValueError(
            f"{where}(flow={getattr(flow, '__name__', flow)}): the constructor gave a flow with event_shape and "
            f"context_shape {found} where {shapes} are wanted; build it from the numbers it is called with."
        )
    if made.likelihood == "none":
        raise ValueError(
            f"{where}(flow={getattr(flow, '__name__', flow)}): this flow has no density to fit; give it a base that "
            f"has one, such as bases.Normal."
        )
    return made


def objective_of(flow: BaseFlow) -> Objective:
    """Chooses the objective: flow matching on a path, FFJORD's for other velocity fields, maximum likelihood else."""
    if getattr(flow, "path", None) is not None:
        return FlowMatching()
    return FFJORD(flow.divergence) if isinstance(flow, ContinuousFlow) else MaximumLikelihood()
