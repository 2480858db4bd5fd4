"""Checks before training starts: options, shapes, contexts, missing values, sizes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from cflow import registry
from cflow.arguments import is_integer
from cflow.io import describe
from cflow.modes import looks_at_batch
from cflow.shapes import pattern, shown
from cflow.training.batches import EmptyBatches, LoaderBatches, RowBatches
from cflow.training.ema import EMA
from cflow.training.options import Options
from cflow.training.tracking import check_boards

__all__ = ["check_batch", "check_data", "check_options", "check_presence", "settings_of"]


def check_presence(flow: Any, objective: Any, data: Any, what: str) -> None:
    """Raises if data that the objective needs are missing, or data that it cannot use are given."""
    name, conditional = type(objective).__name__, flow.context_shape is not None
    if objective.samples_per_item != 0:
        if data is None:
            raise ValueError(
                f"fit({what}=None): {name} learns from data; pass a tensor [N, *event], a pair (x, context), a Dataset "
                f"or a loader."
            )
    elif data is None and conditional:
        raise ValueError(
            f"fit({what}=None): this flow is conditional (context_shape={shown(flow.context_shape)}) and {name} needs "
            f"contexts; pass them, of shape {pattern(flow.context_shape, 'N')}, as {what}."
        )
    elif data is not None and not conditional:
        raise ValueError(
            f"fit({what}=...): {name} uses no data, and this flow is unconditional; omit {what}, or pass contexts to a "
            f"conditional flow."
        )


def check_data(
    flow: Any,
    objective: Any,
    source: RowBatches | LoaderBatches | EmptyBatches,
    what: str,
    drops_last: bool,
    processes: int = 1,
) -> None:
    """Raises if data cannot train this flow; tensors are checked completely, datasets by their first batch.

    Batches of loaders are checked when they arrive.
    """
    if isinstance(source, LoaderBatches | EmptyBatches):
        return
    if source.size == 0:
        raise ValueError(f"fit({what}=...): there are no rows; pass at least one row.")
    rows = source.batch_size * source.world
    if drops_last and not source.replaces and rows > source.size:
        asked = rows // processes
        each = "" if processes == 1 else f", but each of {processes} processes needs {asked}"
        largest = source.size // processes
        instead = f"choose batch_size <= {largest}" if largest else f"start at most {source.size} processes"
        raise ValueError(
            f"fit(batch_size={asked}): batches are drawn without replacement and {what} has {source.size} rows{each}; "
            f"{instead}."
        )
    if source.dataset is not None:
        check_batch(flow, objective, *next(source.once()), what)
        return
    check_batch(flow, objective, source.x, source.context, what)
    for name, part in (("", source.x), (" (its context)", source.context)):
        for leaf in tree_leaves(part):
            if isinstance(leaf, Tensor) and leaf.numel() and (leaf.is_floating_point() or leaf.is_complex()):
                bad = ~leaf.reshape(len(leaf), -1).isfinite().all(1)
                if bad.any():
                    rows = bad.nonzero().flatten()
                    raise ValueError(
                        f"fit({what}=...){name}: {len(rows)} of {len(leaf)} rows have NaN or infinity (rows "
                        f"{rows[:8].tolist()}{'...' if len(rows) > 8 else ''}); drop these rows, or fill the gaps."
                    )
    _check_on_manifold(flow, objective, source.x, what)


def _check_on_manifold(flow: Any, objective: Any, x: Any, what: str) -> None:
    """Raises if data that are modelled as they are do not lie on the flow's manifold."""
    if flow.manifold is None or not isinstance(x, Tensor) or not x.numel():
        return
    if len(flow.transform.maps) and not objective.in_model_space:
        if flow.transform.draws or objective.samples_per_item is not None or flow.context_shape is not None:
            return  # a transform may read the context
        outside, where = torch.zeros(0, dtype=torch.bool), f"in the domain of {type(flow.transform.maps[0]).__name__}"
        instead, points = "check the order of the columns and their units, or drop these rows", []
        for part in x.split(2**16):
            u, ladj = flow.preprocess(flow.cast(part))
            points.append(flow.manifold.holds(u).cpu())
            outside = torch.cat((outside, (ladj == -torch.inf).cpu()))
        if not outside.any():
            outside, where = ~torch.cat(points), f"on {flow.manifold!r} after the transforms"
            instead = "omit transforms that move points off the manifold"
    else:
        outside, where = ~flow.manifold.holds(x).reshape(len(x), -1).all(1), f"on {flow.manifold!r}"
        instead = "project them by manifold.project(x), or add a transform such as bijections.LatLon()"
    if outside.any():
        rows = outside.nonzero().flatten()
        raise ValueError(
            f"fit({what}=...): {len(rows)} of {len(x)} rows are not {where} (rows "
            f"{rows[:8].tolist()}{'...' if len(rows) > 8 else ''}); {instead}."
        )


def check_batch(flow: Any, objective: Any, x: Any, context: Any, what: str) -> None:
    """Raises if the shapes of a batch are not those of the flow."""
    without_x = objective.samples_per_item == 0
    event = flow.model_shape if objective.in_model_space else flow.event_shape
    count = len(x) if without_x else _check_shape(x, event, f"fit({what}=...)", "[N", objective.samples_per_item)
    pair = f"fit({what}=contexts)" if without_x else f"fit({what}=(x, context))"
    if flow.context_shape is None and context is not None:
        raise ValueError(
            f"fit({what}=(x, context)): this flow is unconditional; pass x alone, or build the flow with "
            f"context_shape=..."
        )
    if flow.context_shape is not None:
        if context is None:
            raise ValueError(
                f"fit({what}=x): this flow is conditional (context_shape={shown(flow.context_shape)}); pass a pair "
                f"(x, context)."
            )
        contexts = _check_shape(context, flow.context_shape, f"{pair}: the context", "[N", None, "reads contexts")
        classes = flow.classes
        if classes and isinstance(context, Tensor) and context.device.type == "cpu" and len(context):
            wrong = ((context < 0) | (context >= classes)).nonzero().flatten()
            if len(wrong):
                raise ValueError(
                    f"{pair}: {len(wrong)} of {contexts} labels are not from 0 to {classes - 1} "
                    f"(rows {wrong[:8].tolist()}{'...' if len(wrong) > 8 else ''}); number the classes from 0."
                )
        if contexts != count:
            raise ValueError(
                f"fit({what}=(x, context)): x has {count} rows and context {contexts}; pass one context per row."
            )


def _check_shape(x: Any, shape: Any, who: str, lead: str, per_item: int | None, use: str = "models events") -> int:
    if isinstance(shape, dict):
        if not isinstance(x, dict) or set(x) != set(shape):
            got = sorted(x) if isinstance(x, dict) else type(x).__name__
            raise ValueError(f"{who}: the flow has the parts {sorted(shape)}, not {got}; pass a dict with these keys.")
        counts = {name: _check_shape(x[name], shape[name], f"{who}[{name!r}]", lead, per_item, use) for name in shape}
        if len(set(counts.values())) != 1:
            raise ValueError(f"{who}: the parts have {counts} rows; pass the same number of each.")
        return next(iter(counts.values()))
    if isinstance(x, dict):
        raise TypeError(
            f"{who} is a dict with the keys {', '.join(map(repr, x))}, not x or (x, context); pass tensors, or a "
            f"collate_fn that returns them."
        )
    if not isinstance(x, Tensor):
        raise TypeError(f"{who} is a {type(x).__name__}, not a torch.Tensor; make one with torch.as_tensor.")
    wanted = (*(() if per_item is None else (per_item,)), *shape)
    if x.dim() != len(wanted) + 1 or tuple(x.shape[1:]) != wanted:
        what = "a base sample and a data sample" if per_item == 2 else f"{per_item} samples"
        held = "" if per_item is None else f" ({what} per item)"
        raise ValueError(
            f"{who} has shape {tuple(x.shape)}, but the flow {use} of shape {shown(shape)}; pass a tensor of "
            f"shape {', '.join([lead, *map(str, wanted)])}]{held}."
        )
    return len(x)


def check_options(flow: Any, objective: Any, validation: Any, options: Options) -> None:
    """Checks the arguments that do not depend on the data."""
    for name, value, methods, example in (
        ("flow", flow, ("parameters", "preprocess", "cast", "record"), "cflow.ContinuousFlow(...)"),
        ("objective", objective, ("make_batch", "loss", "entry", "check_transform"), "objectives.FlowMatching()"),
        ("schedule", options.schedule, ("__call__",), "training.Cosine(warmup=100)"),
    ):
        if isinstance(value, type) or not all(callable(getattr(value, method, None)) for method in methods):
            given = f"the class {value.__name__}" if isinstance(value, type) else repr(type(value).__name__)
            raise TypeError(f"fit({name}=...) is {given}; pass an object such as {example}.")
    if options.ema is not None and not isinstance(options.ema, EMA):
        raise TypeError(f"fit(ema={options.ema!r}): pass training.EMA(), or None for no average.")
    counts = ["steps", "batch_size", "validate_every", "accumulate", "pool", "checkpoint_every", "keep", "log_every"]
    given = ["seed"]
    # None lets fit choose.
    counts += [] if options.workers is None else ["workers"]
    counts += [] if options.patience is None else ["patience"]
    given += [] if options.prefetch is None else ["prefetch"]
    for name in (*counts, *given):
        value = getattr(options, name)
        if not is_integer(value):
            raise TypeError(f"fit({name}={value!r}): pass a whole number, not a {type(value).__name__}.")
    for name in counts:
        if getattr(options, name) < 1:
            raise ValueError(f"fit({name}={getattr(options, name)}): pass 1 or more.")
    for name in (*given, "weight_decay"):
        if getattr(options, name) < 0:
            raise ValueError(f"fit({name}={getattr(options, name)}): pass 0 or more.")
    if not options.lr > 0:
        raise ValueError(f"fit(lr={options.lr}): a learning rate is positive; pass for instance 1e-3.")
    if options.clip is not None and not options.clip > 0:
        raise ValueError(f"fit(clip={options.clip}): a norm is positive; pass such a number, or None.")
    if options.precision not in ("no", "bf16"):
        raise ValueError(f"fit(precision={options.precision!r}): unknown precision; pass 'no' or 'bf16'.")
    if options.patience is not None and validation is None:
        raise ValueError(
            f"fit(patience={options.patience}, validation=None): there is no validation loss; pass validation=... too."
        )
    check_boards(options.log_with, options.out)
    by_batch = [name for name, part in flow.named_modules() if looks_at_batch(part)] if options.accumulate > 1 else []
    if by_batch:
        warnings.warn(
            f"fit(accumulate={options.accumulate}): {by_batch[0]} uses batch statistics, here of each of the "
            f"{options.accumulate} pieces separately, so the result differs from that of whole batches; use layer or "
            f"group norm, or accumulate=1.",
            stacklevel=3,
        )
    objective.check_transform(flow)
    if options.resume and options.out is None:
        raise ValueError("fit(resume=True, out=None): no folder to resume from; pass out=...")
    if not any(each.requires_grad for part in (flow, objective) for each in _parameters(part)):
        raise ValueError("fit(flow): no parameter requires a gradient; unfreeze some of them.")
    if options.out is not None:
        if Path(options.out).exists() and not Path(options.out).is_dir():
            raise ValueError(f"fit(out={str(options.out)!r}): this is a file; pass a folder.")

        # Report a flow that cannot be saved now, not after training.
        try:
            describe(flow, flow.state_dict())
        except ValueError as error:
            raise ValueError(
                f"fit(out={str(options.out)!r}): the trained flow cannot be saved. {error} Or pass out=None and save "
                f"flow.state_dict() yourself."
            ) from error


def _parameters(part: Any) -> Iterable[nn.Parameter]:
    return part.parameters() if isinstance(part, nn.Module) else ()


def settings_of(flow: Any, objective: Any, source: Any, options: Options) -> dict[str, Any]:
    """Returns the settings that must be equal for a resumed run to repeat the one before, in a form for JSON.

    They are empty if the run writes no checkpoints.
    """
    if options.out is None:
        return {}
    names = ("seed", "lr", "weight_decay", "clip", "precision", "accumulate", "pool", "patience")
    settings = {name: getattr(options, name) for name in names} | source.describe()
    settings["betas"] = list(options.betas)
    settings["ema"] = None if options.ema is None else asdict(options.ema)
    # A user's function has no readable form, so its name is used.
    shown_schedule = repr(options.schedule) if hasattr(options.schedule, "__dataclass_fields__") else None
    settings["schedule"] = shown_schedule or getattr(
        options.schedule, "__qualname__", type(options.schedule).__qualname__
    )
    settings["flow"], settings["objective"] = registry.outline(flow), registry.outline(objective)
    settings["parameters"] = [
        [registry.uncompiled_name(name), str(each.dtype), list(each.shape)]
        for part in (flow, objective)
        if isinstance(part, nn.Module)
        for name, each in part.named_parameters()
    ]
    return settings
