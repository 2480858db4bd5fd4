"""``fit``: trains a flow with an objective on data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import nn

from cflow.training.batches import batches_of
from cflow.training.checkpoints import Checkpoints, check_settings
from cflow.training.checks import check_data, check_options, settings_of
from cflow.training.ema import EMA, Average
from cflow.training.loop import Loop, MeanLoss
from cflow.training.schedules import Cosine
from cflow.training.tracking import Tracker

__all__ = ["Run", "fit"]


@dataclass
class Run:
    """What :func:`fit` did.

    Attributes:
        steps: optimizer steps made in all, those before a resumption included.
        seconds: time they took.
        history: rows with ``step, loss, grad_norm, lr, seconds`` (means since the row before) and, where it was
            measured, ``validation``.
        out: the folder written, or ``None``.
        resumed_from: the step of the checkpoint that the run went on from, or ``None``.
        stopped: whether a callback ended the run early.
    """

    steps: int
    seconds: float
    history: list[dict[str, Any]] = field(repr=False)
    out: Path | None = None
    resumed_from: int | None = None
    stopped: bool = False

    @property
    def final_loss(self) -> float:
        """The mean training loss of the last row."""
        return self.history[-1]["loss"]

    @property
    def final_validation(self) -> float | None:
        """The last validation loss, where there was one."""
        return next((row["validation"] for row in reversed(self.history) if "validation" in row), None)


def fit(
    flow: Any,
    objective: Any,
    data: Any,
    *,
    steps: int,
    batch_size: int = 256,
    lr: float = 1e-3,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    validation: Any = None,
    validate_every: int = 500,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    clip: float | None = 1.0,
    schedule: Callable[[int, int], float] = Cosine(),  # noqa: B008 - frozen
    ema: EMA | None = EMA(),  # noqa: B008 - frozen
    precision: Literal["no", "bf16"] = "no",
    accumulate: int = 1,
    prefetch: int = 2,
    checkpoint_every: int = 1000,
    keep: int = 2,
    log_every: int = 50,
    device: torch.device | str | None = None,
    progress: bool = False,
    callbacks: Iterable[Callable[[int, Any], Any]] = (),
) -> Run:
    r"""Trains a flow: AdamW on the mean of ``objective`` over batches of ``data``.

    The flow is trained in place and holds the averaged weights afterwards (the raw ones stay in the checkpoint). All
    draws are by counter: those of step ``n`` depend on ``(seed, n)``, the order of epoch ``e`` on ``(seed, e)``. So a
    run that was killed and is resumed on one process ends with the same weights to the bit, and torch's global random
    state is left as it was.

    Args:
        flow: the flow; it goes to the device that accelerate chooses, or to ``device``.
        objective: what is minimised. Its own parameters are trained where they require gradients.
        data: a tensor ``[N, *event]``, a pair ``(x, context)`` of tensors, a map-style ``Dataset`` of ``x`` or
            ``(x, context)``, or a loader of batches of these. Where an item holds several samples
            (``objective.members``; two for given pairs), ``x`` is ``[N, members, *event]``. Floating data are brought
            to the flow's dtype. Tensors and datasets are drawn without replacement and the last partial batch of an
            epoch is left out; a loader decides for itself (under several processes it must give each its own rows).
        steps: number of optimizer steps.
        batch_size: items per step and process; a loader's batches are taken as they are.
        lr: learning rate, multiplied by ``schedule``.
        out: folder for ``history.csv``, ``tensorboard/``, ``checkpoints/`` and, at the end, ``model/`` (read it with
            ``cflow.load``). Without it nothing is written anywhere.
        resume: go on from the newest checkpoint in ``out`` (from the start where there is none). More steps than before
            are allowed, but a schedule that falls towards the last step then takes another course than in one long run.
        validation: data of the same kinds, whose loss is recorded every ``validate_every`` steps: averaged weights,
            evaluation mode, no gradients, always the same draws.
        weight_decay: decoupled weight decay of parameters with two dimensions or more.
        clip: largest norm of the gradient; ``None`` for no limit. The history holds the norm before clipping.
        ema: how weights are averaged; ``None`` for not at all.
        precision: ``"bf16"`` runs the loss under bfloat16 autocast; weights and their average stay as they are.
        accumulate: computes each batch in that many pieces, to save memory. Draws and couplings are those of the whole
            batch, so the result is the same up to rounding.
        prefetch: batches prepared ahead in a worker thread (0: in line, with the same result). Where the base or a
            transform is learned, and on accelerators, preparation is always in line, on the flow's device.
        checkpoint_every: steps between checkpoints; the newest ``keep`` stay.
        log_every: steps between rows of the history.
        callbacks: called as ``callback(step, flow)`` after every step; one that returns True ends the run.

    Cost: on an accelerator the host waits for it only at rows, validations and checkpoints.

    Raises:
        ValueError: for data that do not fit the flow, hold NaN, or are fewer than a batch; for a folder with
            checkpoints when ``resume`` is False; for a damaged checkpoint, or one of a run with other settings.
        FloatingPointError: where the loss or a gradient is not finite; the weights stay as they were before that
            step. On the CPU it is raised at the step, on an accelerator at the next row, validation or checkpoint.
        KeyboardInterrupt: at Ctrl-C or SIGTERM, after a checkpoint of the last complete step.

    Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2017, arXiv:1711.05101 (AdamW).

    Example:
        >>> from cflow import ContinuousFlow, bases, fields, objectives, paths
        >>> flow = ContinuousFlow(fields.MLP(2), bases.Normal(2), path=paths.Linear())
        >>> run = fit(flow, objectives.FlowMatching(), torch.randn(512, 2), steps=20, log_every=10)
        >>> [row["step"] for row in run.history]
        [10, 20]
    """
    options = SimpleNamespace(**{name: value for name, value in locals().items() if name not in ("flow", "objective")})
    options.callbacks = tuple(callbacks)
    check_options(flow, objective, options)
    from accelerate import Accelerator

    accelerator = Accelerator()
    accelerator.gradient_accumulation_steps = 1  # the loop weighs its pieces itself, whatever the launcher says
    if accelerator.mixed_precision not in ("no", precision):
        raise ValueError(
            f"fit(precision={precision!r}): accelerate was launched with mixed precision "
            f"{accelerator.mixed_precision!r}; launch it without, and choose the precision here."
        )
    world, rank = accelerator.num_processes, accelerator.process_index
    source = batches_of(data, batch_size, seed, rank, world)
    check_data(flow, objective, source, "data", drops_last=True)
    judged = None if validation is None else batches_of(validation, batch_size, seed)
    if judged is not None:
        check_data(flow, objective, judged, "validation", drops_last=False)

    place = accelerator.device if device is None else torch.device(device)
    module = MeanLoss(flow, objective, precision == "bf16").to(place)
    optimizer = _optimizer(module, options)
    module, optimizer = accelerator.prepare(module, optimizer, device_placement=[device is None, device is None])
    # The wrappers of step and backward serve fp16's loss scaling, which is not offered, and cost half a millisecond.
    optimizer = optimizer.optimizer
    average = None if ema is None else Average(flow, ema)
    if average is not None:
        accelerator.register_for_checkpointing(average)

    folder = None if out is None else Path(out)
    writes = folder is not None and accelerator.is_main_process
    checkpoints = None if folder is None else Checkpoints(folder, accelerator, keep)
    settings = settings_of(flow, objective, source, options)
    loop = Loop(
        flow, objective, module, optimizer, accelerator, average, source, judged, None, checkpoints, options, settings
    )
    saved = checkpoints.steps() if checkpoints is not None else []
    if saved:
        _resume(loop, saved, options)
    loop.tracker = Tracker(folder if writes else None, loop.step)
    resumed_from = loop.step if saved else None

    modes = [(part, part.training) for part in flow.modules()]
    flow.train()
    bar = _bar(loop, steps) if progress and accelerator.is_main_process else None
    stopped = False
    try:
        with loop.interrupt.listening():
            stopped = loop.run(steps, bar)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_interrupted(loop)) from None
    finally:
        loop.tracker.close()
        if bar is not None:
            bar.close()
        for part, mode in modes:
            part.training = mode
        if average is not None:
            average.copy_to_module()
        for parameter in loop.parameters:
            parameter.grad = None
    if writes:
        from cflow.io import save

        save(flow, folder / "model")
    return Run(loop.step, loop.seconds, loop.tracker.history, folder, resumed_from, stopped)


def _optimizer(module: nn.Module, options: SimpleNamespace) -> torch.optim.Optimizer:
    """Builds AdamW, fused where the device has it; gains and biases are not decayed."""
    trained = [each for each in module.parameters() if each.requires_grad]
    matrices = [each for each in trained if each.dim() >= 2]
    others = [each for each in trained if each.dim() < 2]
    groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    fused = all(each.is_floating_point() and each.device.type in ("cpu", "cuda") for each in trained)
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=options.lr,
        betas=options.betas,
        weight_decay=options.weight_decay,
        fused=True if fused else None,
    )


def _resume(loop: Loop, saved: list[int], options: SimpleNamespace) -> None:
    """Goes back to the newest checkpoint, or says why not."""
    newest = loop.checkpoints.path(saved[-1])
    if not options.resume:
        raise ValueError(
            f"fit(out={str(options.out)!r}): the folder holds checkpoints of an earlier run (up to step {saved[-1]}), "
            f"which this one would overwrite; pass resume=True to go on from there, or another folder."
        )
    note = loop.checkpoints.read_note(saved[-1])
    check_settings(note, loop.settings, newest)
    if options.steps < saved[-1]:
        raise ValueError(
            f"fit(steps={options.steps}, resume=True): {newest} has gone {saved[-1]} steps already; "
            f"pass steps >= {saved[-1]}, or another folder."
        )
    loop.restore(saved[-1], note)


def _bar(loop: Loop, steps: int) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=steps, initial=loop.step, unit="step", dynamic_ncols=True)


def _interrupted(loop: Loop) -> str:
    """Saves what is complete and says where."""
    what = f"fit: interrupted ({loop.interrupt.name or 'KeyboardInterrupt'}) after step {loop.step}"
    if loop.checkpoints is None:
        return f"{what}; nothing was written (out=None)"
    if not loop.whole:
        saved = loop.checkpoints.steps()
        kept = f"the last checkpoint is {loop.checkpoints.path(saved[-1])}" if saved else "there is no checkpoint yet"
        return f"{what}, in the middle of an update; {kept}"
    if loop.step not in loop.checkpoints.steps():
        loop.save()
    return f"{what}; the checkpoint is {loop.checkpoints.path(loop.step)}: go on with resume=True"
