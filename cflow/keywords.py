"""Help for unknown keywords: the nearest known keyword, also for the names that other libraries use."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from cflow.arguments import is_integer, plain

__all__ = ["CALLS", "FLOWS", "advice", "check_keywords", "closest", "hint", "made_by_name", "widths_of"]


def _named(**ours: str) -> dict[str, str]:
    """Converts ``ours="theirs theirs"`` to ``{theirs: ours}``."""
    return {theirs: name for name, several in ours.items() for theirs in several.split()}


FLOWS = _named(
    bins="num_bins n_bins count_bins nbins knots num_knots",
    bound="tail_bound tail_bounds bounds interval box",
    layers="num_layers n_layers n_layer num_flows n_flows flows transforms num_transforms n_transforms num_blocks "
    "n_blocks num_coupling_layers n_coupling_layers num_flow_steps flow_steps n_flow_steps depth num_stages",
    hidden="hidden_units hidden_features hidden_dims hidden_dim hidden_size hidden_sizes hidden_channels hidden_layers "
    "hidden_width num_hidden_channels n_neurons units width widths nodes",
    features="dim dims d n_dims num_dims ndim num_features n_features input_dim input_size n_inputs event_shape "
    "num_input_channels",
    context="condition conditional context_features context_dim context_size context_shape num_context n_context cond "
    "cond_dim n_conditional_inputs num_context_channels",
    classes="num_classes n_classes num_class n_class labels num_labels n_labels class_labels",
    activation="act activation_fn activation_function nonlinearity",
    residual="use_residual_blocks use_residual resnet residual_blocks",
    linear="linear_transform lu permutation permute use_lu",
    components="num_components n_components mixtures num_mixtures n_mixtures",
    clamp="scale_clamp clamp_value max_scale",
    degree="order polynomial_degree",
    polynomials="num_polynomials n_polynomials",
)
"""Keywords of flows in other libraries (zuko, nflows, normflows, glasflow and so on), and the keyword here."""

CALLS = {
    **dict.fromkeys(
        ["n", "n_samples", "num_samples", "n_sample", "size", "num", "count", "sample_shape", "batch_size"],
        "pass the number or the shape first: flow.sample((16,))",
    ),
    **dict.fromkeys(
        ["c", "cond", "condition", "conditional", "y", "label", "labels", "class_label", "class_labels", "given"],
        "pass context=...",
    ),
    **dict.fromkeys(
        ["steps", "n_steps", "num_steps", "method", "sampler", "ode_solver", "rtol", "atol", "step_size"],
        "these belong to a solver: pass solver=solvers.Heun(steps=20)",
    ),
    **dict.fromkeys(["cfg", "cfg_scale", "guidance_scale", "scale", "w"], "pass guidance=guidance.ClassifierFree(2.0)"),
    **dict.fromkeys(["seed", "random_state", "rng", "key"], "pass generator=torch.Generator().manual_seed(0)"),
    **dict.fromkeys(["value", "values", "inputs", "samples"], "pass the data first: flow.log_prob(x)"),
}
"""Keywords of calls in other libraries, and what to write here."""


WITHOUT = {
    "solver": "this flow needs no solver; ",
    "guidance": "this flow has no guidance; ",
}
"""The message for an option, and for other libraries' names of it, where it is not taken."""


def advice(given: str, known: Sequence[str]) -> str:
    """Suggests what to write in place of the keyword ``given`` in a call that takes ``known``; empty if nothing fits.

    Example:
        >>> advice("steps", ["generator", "solver"]), advice("steps", ["generator"])
        ('these belong to a solver: pass solver=solvers.Heun(steps=20); ', 'this flow needs no solver; ')
    """
    said = CALLS.get(given, "")
    sampling = "pass solver=" in said or given in ("temperature", "top_k", "top_p", "eta", "together")
    if sampling and "solver" not in known and "sampler" in known:
        return "these belong to a sampler: pass sampler=ctmc.Analytic(steps=64); "
    for option, instead in WITHOUT.items():
        if option not in known and (given == option or f"pass {option}=" in said):
            return instead
    return f"{said}; " if said else hint(given, known, {})


def hint(given: str, known: Iterable[str], foreign: Mapping[str, str]) -> str:
    """Suggests the known keyword that is nearest to ``given``, as a part of an error; empty if none is near.

    Example:
        >>> hint("num_bins", ["bins", "bound"], FLOWS), hint("boud", ["bins", "bound"], FLOWS)
        ("did you mean 'bins'? ", "did you mean 'bound'? ")
    """
    known = list(known)
    meant = foreign.get(given)
    if meant not in known:
        meant = next(iter(difflib.get_close_matches(given, known, 1)), None)
    return "" if meant is None else f"did you mean {meant!r}? "


def closest(word: str, known: Iterable[str]) -> str:
    """Returns the end of a sentence that suggests the known word closest to ``word``.

    Example:
        >>> closest("eulr", ["euler", "heun"]), closest("x", ["euler", "heun"])
        ("; did you mean 'euler'?", '.')
    """
    close = difflib.get_close_matches(str(word).lower(), list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else "."


def made_by_name(owner: str, what: str, classes: Mapping[str, type], name: str, options: Mapping[str, Any]) -> Any:
    """Builds an object of a dataclass from its name and its options.

    Args:
        owner: name of the calling function, for errors.
        what: what is built, such as ``"solver"``.
        classes: the dataclasses by name.
        name: a key of ``classes``.
        options: arguments of the constructor.

    Raises:
        ValueError: if there is no such class, or it has no such option; the message lists the valid ones.
    """
    if name not in classes:
        raise ValueError(
            f"{owner}({name!r}): there is no such {what}{closest(name, classes)} The {what}s are "
            f"{', '.join(sorted(classes))}."
        )
    known = [each.name for each in fields(classes[name])]
    for option in options:
        if option not in known:
            raise ValueError(
                f"{owner}({name!r}, {option}=...): {classes[name].__name__} has no such option"
                f"{closest(option, known)} Its options are {', '.join(known)}."
            )
    return classes[name](**options)


def check_keywords(owner: str, given: Mapping[str, object], known: Sequence[str], takes: Sequence[str]) -> None:
    """Raises a TypeError for the first unknown keyword, with the nearest known one and the list of valid ones.

    Args:
        owner: name of the called class or function.
        given: the keywords and their values.
        known: all known keywords.
        takes: the keywords that the error lists.

    Example:
        >>> check_keywords("MLP", {"hidden_features": 64}, ["features", "hidden"], ["hidden"])
        Traceback (most recent call last):
        TypeError: MLP(hidden_features=64): no such option; did you mean 'hidden'? (a width for every layer: \
hidden=(64, 64)) MLP takes hidden.
    """
    for option, value in given.items():
        if option not in known:
            meant = hint(option, known, FLOWS)
            widths = (value, value) if is_integer(value, numpy=True) else (64, 64)
            if isinstance(value, list | tuple) and value:
                widths = tuple(value)
            hidden = f"(a width for every layer: hidden={widths}) " if "'hidden'" in meant else ""
            raise TypeError(
                f"{owner}({option}={value!r:.60}): no such option; {meant}{hidden}{owner} takes {', '.join(takes)}."
            )


def widths_of(owner: str, name: str, value: object) -> tuple[int, ...]:
    """Reads the widths of hidden layers, one integer for each, as Python integers.

    Raises:
        TypeError: for anything that is not a sequence of integers.
    """
    try:
        widths = tuple(plain(each) for each in value)  # type: ignore[attr-defined]
    except TypeError:
        widths = (None,)
    if isinstance(value, str) or not all(map(is_integer, widths)):
        two = (plain(value),) * 2 if is_integer(value, numpy=True) else (64, 64)
        raise TypeError(
            f"{owner}({name}={value!r}): this takes the width of every hidden layer, as integers; pass {name}={two}."
        )
    return widths  # type: ignore[return-value]
