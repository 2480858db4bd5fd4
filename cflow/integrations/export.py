"""Export of a trained flow as one graph of operations, which runs without this library: ``torch.export`` and ONNX."""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import cflow
from cflow.arguments import check_integer
from cflow.bijections import Map
from cflow.continuous.flow import ContinuousFlow
from cflow.continuous.transport import transport
from cflow.divergence import Analytic
from cflow.invertible_flow import BaseInvertibleFlow
from cflow.lost_rows import fill_outside, restore, set_aside, set_far_aside
from cflow.registry import outline
from cflow.solvers import Solver

__all__ = ["ENDINGS", "PARTS", "program", "save"]

ENDINGS = (".pt2", ".onnx")


def program(
    flow: BaseInvertibleFlow,
    what: str = "sampler",
    *,
    solver: Solver | None = None,
    guidance: Callable | None = None,
    batch: int | None = None,
) -> torch.export.ExportedProgram:
    r"""Traces a part of a flow into a graph of tensor operations.

    | ``what``       | inputs                           | output                                                   |
    |----------------|----------------------------------|----------------------------------------------------------|
    | ``"network"``  | ``t [B]``, ``x``, ``context``    | the velocity ``[B, *event]`` in model space               |
    | ``"sampler"``  | ``z [B, *latent]``, ``context``  | the samples ``[B, *event]`` for draws ``z`` of the base  |
    | ``"log_prob"`` | ``x [B, *event]``, ``context``   | the log-densities ``[B]`` in nats                        |

    Model space is the space of the data after the flow's transforms. Log-densities of a continuous flow always use
    ``divergence.Analytic``.

    The context of a conditional flow is the last input: integer labels ``[B]`` (the number of classes means no
    condition), or ``[B, *context_shape]``. The graph does not check labels. A sample whose solve fails is returned with
    values that are not finite. The program is traced in evaluation mode and without gradients, on the flow's device.
    Then its results are compared with those of the flow.

    Cost: the graph of a sampler contains every step of its solver. Tracing takes about half a second per hundred
    operations.

    Args:
        flow: the trained flow.
        what: the part to export; see the table.
        solver: the solver of a continuous flow's sampler and log-density: a method on a fixed grid without noise, or a
            fitted one. Default: that of the flow.
        guidance: the guidance of a continuous flow's network and sampler. Default: none.
        batch: the batch size of the program. Default: any size from 1.

    Raises:
        ValueError: for another ``what``, an option that the part does not take, adaptive and stochastic solvers, the
            log-density of a field without a divergence in closed form (a graph cannot contain the autograd of the other
            divergences), and flows whose Python code depends on the values of tensors.

    Source: Ansel et al., PyTorch 2: Faster Machine Learning Through Dynamic Python Bytecode Transformation and Graph
    Compilation, 2024, ASPLOS; torch.export's documentation.

    Example:
        >>> import cflow
        >>> from cflow import bases, fields, paths, solvers
        >>> flow = cflow.ContinuousFlow(fields.MLP(2, hidden=(8,)), bases.Normal(2), path=paths.Linear())
        >>> sampler = program(flow, "sampler", solver=solvers.Heun(steps=2)).module()
        >>> sampler(torch.randn(5, 2)).shape
        torch.Size([5, 2])
    """
    return _trace(flow, what, solver, guidance, batch)[0]


def save(
    flow: BaseInvertibleFlow,
    path: str | os.PathLike,
    what: str = "sampler",
    *,
    solver: Solver | None = None,
    guidance: Callable | None = None,
    batch: int | None = None,
) -> Path:
    """Writes a part of a flow to a file: a ``torch.export`` program (.pt2) or an ONNX model (.onnx).

    A second file, ``path`` with ``.json`` added, describes the inputs and the output (names, shapes, dtypes), the base
    from which ``z`` of a sampler is drawn, and the meaning of time. Run a program with
    ``torch.export.load(path).module()(*inputs)``, which needs only torch.

    Args:
        path: the file; its ending decides the format.

    The other arguments are those of :func:`program`, which also states the cost.

    Raises:
        ValueError: for another ending, as :func:`program`, and if ONNX does not have an operation.
        ImportError: for ONNX if its packages are not installed.

    Example:
        >>> import cflow, tempfile
        >>> flow = cflow.discrete.nsf(2, layers=1, hidden=(8,))
        >>> path = save(flow, tempfile.mkdtemp() + "/density.pt2", "log_prob")
        >>> torch.export.load(path).module()(torch.zeros(3, 2)).shape
        torch.Size([3])
    """
    path = Path(path)
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(
            f"export.save({str(path)!r}): the ending {path.suffix or 'none'!r} is not supported; choose "
            f"{' or '.join(ENDINGS)}."
        )
    onnx = path.suffix.lower() == ".onnx"
    if onnx:
        _needs_onnx(path)
    traced, part = _trace(flow, what, solver, guidance, batch)
    path.parent.mkdir(parents=True, exist_ok=True)
    if onnx:
        try:
            # Not optimised: this is slow for large graphs, and runtimes optimise a model when they load it.
            with _quiet():
                torch.onnx.export(
                    traced, (), path, dynamo=True, optimize=False, verbose=False, external_data=False,
                    input_names=[name for name, *_ in part.inputs], output_names=[part.output],
                )  # fmt: skip
        except torch.onnx.OnnxExporterError as error:
            cause = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise ValueError(
                f"export.save({str(path)!r}): ONNX does not have an operation of the {what} ({_first_line(cause)}); "
                f"write a .pt2 program."
            ) from error
    else:
        torch.export.save(traced, path)
    description = _described(flow, what, part, batch)
    path.with_name(path.name + ".json").write_text(json.dumps(description, indent=1) + "\n")
    return path


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Omits messages of torch's ONNX export that do not concern its user; all others stay.

    The operations of torchvision occur in no flow, and the deprecation is one inside torch.
    """
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    concerns = lambda record: not record.getMessage().startswith("torchvision is not installed")
    logger.addFilter(concerns)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            yield
    finally:
        logger.removeFilter(concerns)


class Part(NamedTuple):
    """A traced module, its inputs (name, shape of a row, dtype), the name of its output, and the options in it."""

    module: nn.Module
    inputs: list[tuple[str, torch.Size, torch.dtype]]
    output: str
    options: dict


class Network(nn.Module):
    """Computes the velocity of a continuous flow; times outside its interval are moved to the nearest end."""

    def __init__(self, flow, guidance=None):
        super().__init__()
        self.flow, self.guidance = flow, guidance

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.flow.velocity_field(self.guidance)(t.clamp(*self.flow.interval), x, context)


class Sampler(nn.Module):
    """Maps draws of the base to samples."""

    def __init__(self, flow, solver=None, guidance=None):
        super().__init__()
        self.flow, self.solver, self.guidance = flow, solver, guidance

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        if isinstance(self.flow, ContinuousFlow):  # without the check for failed samples
            u = transport(self.flow, z, 0.0, 1.0, context, None, solver=self.solver, guidance=self.guidance).y
        else:
            u, _ = self.flow._decode(z, context, None, ladj=False)
        return self.flow.postprocess(u, context)[0]


class LogProb(nn.Module):
    """Computes log-densities of data."""

    def __init__(self, flow, solver=None):
        super().__init__()
        self.flow, self.solver = flow, solver

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        if not isinstance(self.flow, ContinuousFlow):
            return self.flow.log_prob(x, context)
        x, size = set_aside(x, self.flow.event_shape)
        u, outer = self.flow.preprocess(x, context)
        u = fill_outside(u, outer, 0.0)
        u, far = set_far_aside(u, self.flow.model_shape)
        options = {"ladj": True, "solver": self.solver, "divergence": Analytic()}
        solution = transport(self.flow, u, 1.0, 0.0, context, None, **options)
        logp = self.flow.base.log_prob(solution.y) + solution.quadratures["ladj"] + outer
        return restore(restore(logp, far), size)


PARTS = {"network": Network, "sampler": Sampler, "log_prob": LogProb}


def _trace(flow, what, solver, guidance, batch) -> tuple[torch.export.ExportedProgram, Part]:
    """Traces a part and compares the program with it."""
    if batch is not None:
        why = "pass an integer of at least 1, or None for any size."
        check_integer("export", "batch", batch, 1, why)
    part = _part(flow, what, solver, guidance)
    sizes = (3, 7) if batch is None else (batch,)
    dynamic = None
    if batch is None:
        dynamic = {name: {0: torch.export.Dim("batch", min=1)} for name, *_ in part.inputs}
    with torch.no_grad():
        inputs, *more = (_example(part, size) for size in sizes)
        try:
            part.module(*inputs)  # a normal call first: its errors are clear, and it computes coefficients
        except TypeError as error:
            if not (what == "log_prob" and isinstance(flow, ContinuousFlow)):
                raise
            raise ValueError(
                f"export(what='log_prob'): {error} An export cannot use the other divergences; call flow.log_prob."
            ) from error
        try:
            traced = torch.export.export(part.module, inputs, dynamic_shapes=dynamic, strict=False)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"export(what={what!r}): torch.export cannot trace this {type(flow).__name__} ({_first_line(error)}); "
                f"remove Python code that depends on values of tensors"
                f"{', or fix the size by batch=...' if batch is None else ''}."
            ) from error
        run = traced.module()
        for each in (inputs, *more):
            wanted, given = part.module(*each), run(*each)
            # A rounding error may change a rounded number by one.
            close = given.shape == wanted.shape and torch.isclose(given, wanted, 1e-3, 1e-4, equal_nan=True)
            if close is False or close.double().mean() < 0.98:
                raise ValueError(
                    f"export(what={what!r}): the program and the flow return different numbers for a batch of "
                    f"{len(each[0])}; use only functions of tensors in it."
                )
    return traced, part


def _part(flow, what: str, solver, guidance) -> Part:
    """Returns the part to trace, and raises for what a graph cannot contain."""
    if what not in PARTS:
        raise ValueError(f"export(what={what!r}): no such part of a flow; choose from {', '.join(PARTS)}.")
    if not isinstance(flow, BaseInvertibleFlow) or isinstance(flow.context_shape, dict):
        raise ValueError(
            f"export({type(flow).__name__}): not supported; pass a ContinuousFlow or NormalizingFlow whose context is "
            f"a tensor or None."
        )
    continuous = isinstance(flow, ContinuousFlow)
    takes = {"network": ("guidance",), "sampler": ("solver", "guidance"), "log_prob": ("solver",)}[what]
    given = {name: value for name, value in {"solver": solver, "guidance": guidance}.items() if value is not None}
    unused = [name for name in given if name not in takes or not continuous]
    if unused:
        raise ValueError(
            f"export(what={what!r}, {unused[0]}={given[unused[0]]!r}): the {what} of a {type(flow).__name__} does not "
            f"use it; omit it."
        )
    if what == "network" and not continuous:
        raise ValueError(
            f"export(what='network'): a {type(flow).__name__} has no velocity; export its 'sampler' or 'log_prob'."
        )
    if what == "log_prob":
        flow._check({}, what)  # whether it has a density
    maps = [each for each in flow.modules() if isinstance(each, Map)]
    looking = sorted({type(each).__name__ for each in maps if each.reads_values or each.draws} - {"Compose"})
    if what == "log_prob" and looking:
        raise ValueError(
            f"export(what='log_prob'): a graph cannot contain {looking[0]}; export the flow without it, or call "
            f"flow.log_prob."
        )
    if continuous and what != "network":
        given["solver"] = _traceable(flow.solver if solver is None else solver)
    module = copy.deepcopy(PARTS[what](flow, **given)).eval().requires_grad_(False)
    inputs = [("x", flow.model_shape if what == "network" else flow.event_shape, flow.dtype)]
    if what == "sampler":
        inputs = [("z", flow.latent_shape, flow.dtype)]
    if what == "network":
        inputs = [("t", torch.Size(), flow.dtype), *inputs]
    if flow.context_shape is not None:
        labels = flow.classes > 0
        inputs.append(("context", flow.context_shape, torch.int64 if labels else flow.dtype))
    return Part(module, inputs, {"network": "v", "sampler": "x", "log_prob": "log_prob"}[what], given)


def _traceable(solver: Solver) -> Solver:
    """Returns a solver in its form for tracing; raises if a graph cannot contain it."""
    why = solver.why_no_graph
    if why is None and solver.step_tolerance is not None:
        why = "its number of steps is not fixed"
    if why is not None:
        raise ValueError(
            f"export(solver={solver!r}): {why}; pass a solver on a fixed grid, such as solvers.Heun(steps=16)."
        )
    return solver.for_tracing()


def _example(part: Part, size: int) -> tuple[Tensor, ...]:
    """Returns inputs for tracing: draws of the base, transformed to data if the part takes data."""
    flow = part.module.flow
    generator = torch.Generator(device=flow.device).manual_seed(size)
    inputs = []
    context = None if flow.context_shape is None else torch.zeros(size, *flow.context_shape, device=flow.device)
    for name, shape, dtype in part.inputs:
        if name == "t":
            value = torch.linspace(0, 1, size, device=flow.device)
        elif name == "context":
            value = context
        else:
            value = flow.base.sample((size,), generator=generator).reshape(size, *shape)
            value = flow.postprocess(value, context)[0] if part.output == "log_prob" else value
        inputs.append(value.to(dtype))
    return tuple(inputs)


def _described(flow, what: str, part: Part, batch: int | None) -> dict:
    """Describes the contents of a file in values that JSON can hold."""
    show = lambda shape: ["batch" if batch is None else batch, *shape]
    name = lambda dtype: str(dtype).removeprefix("torch.")
    output = {"log_prob": torch.Size(), "network": flow.model_shape}.get(what, flow.event_shape)
    description = {
        "format": "cflow export 1",
        "what": what,
        "inputs": [{"name": each, "shape": show(shape), "dtype": name(dtype)} for each, shape, dtype in part.inputs],
        "output": {"name": part.output, "shape": show(output), "dtype": name(flow.dtype)},
        "time": "t = 0 is the base, t = 1 is the data; velocities point from base to data",
        "base": outline(flow.base),
        "options": {name: repr(value) for name, value in part.options.items()},
        "device": str(flow.device),
        "cflow": cflow.__version__,
        "torch": torch.__version__,
    }
    if what == "network":
        description["interval"] = list(flow.interval)
    classes = flow.classes
    if classes:
        description["classes"] = classes
    if what == "log_prob":
        description["likelihood"] = flow.likelihood
    return description


def _needs_onnx(path: Path) -> None:
    try:
        for name in ("onnx", "onnxscript"):
            importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"export.save({str(path)!r}): {error.name} is not installed; pip install onnx onnxscript, or write a .pt2 "
            f"program."
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".:")
