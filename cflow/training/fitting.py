"""``fit``: trains a flow with an objective on data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from cflow.claims import claimed
from cflow.io import save
from cflow.modes import modes_kept
from cflow.record import recall, records_of
from cflow.training.batches import batches_of
from cflow.training.best import Best
from cflow.training.checkpoints import Checkpoints, State, check_settings
from cflow.training.checks import check_data, check_options, check_presence, settings_of
from cflow.training.ema import EMA, Average
from cflow.training.loop import Loop
from cflow.training.options import Options
from cflow.training.processes import Processes, group_is_open
from cflow.training.schedules import Cosine
from cflow.training.sharding import MeanLoss, Trained, wants_sharding
from cflow.training.tracking import check_callbacks, is_watched

__all__ = ["Run", "fit"]


@dataclass
class Run:
    """The result of :func:`fit`.

    Attributes:
        steps: the number of optimizer steps, including those before a resumed run.
        seconds: the time of these steps.
        history: rows with ``step, loss, grad_norm, lr, seconds`` (means since the row before), the metrics of the
            objective (``objective.metric_names``: ``nats``, ``nfe`` and so on for ``FFJORD``) and, after a validation,
            ``validation`` and ``validation_...`` for each metric.
        out: the folder of the results, or ``None``.
        resumed_from: the step of the checkpoint from which the run continued, or ``None``.
        stopped: whether a callback or ``patience`` ended the run early.
        best_step: the step whose weights the flow has, if ``patience`` was given.
    """

    steps: int
    seconds: float
    history: list[dict[str, Any]] = field(repr=False)
    out: Path | None = None
    resumed_from: int | None = None
    stopped: bool = False
    best_step: int | None = None

    @property
    def final_loss(self) -> float:
        """The mean training loss of the last row."""
        return self.history[-1]["loss"]

    @property
    def final_validation(self) -> float | None:
        """The last validation loss, or None."""
        return next((row["validation"] for row in reversed(self.history) if "validation" in row), None)


def fit(
    flow: Any,
    objective: Any,
    data: Any = None,
    *,
    steps: int,
    weights: Any = None,
    batch_size: int = 256,
    lr: float = 1e-3,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    validation: Any = None,
    validate_every: int = 500,
    patience: int | None = None,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    clip: float | None = 1.0,
    schedule: Callable[[int, int], float] = Cosine(),  # noqa: B008 - frozen
    ema: EMA | None = EMA(),  # noqa: B008 - frozen
    precision: Literal["no", "bf16"] = "no",
    accumulate: int = 1,
    pool: int = 1,
    across_processes: bool = False,
    prefetch: int | None = None,
    workers: int | None = None,
    checkpoint_every: int = 1000,
    keep: int = 2,
    save_model: bool = True,
    log_every: int = 50,
    device: torch.device | str | None = None,
    progress: bool | None = None,
    log_with: Any = (),
    callbacks: Iterable[Callable[[int, Any, dict[str, Any] | None], Any]] = (),
) -> Run:
    r"""Trains a flow with AdamW: minimises the mean of ``objective`` over batches of ``data``.

    The flow is trained in place and has the averaged weights afterwards (checkpoints have the raw ones too). A record
    of the training is added to ``flow.trained_by``. All random draws are by counter: those of step ``n`` depend on
    ``(seed, n)``, and the order of epoch ``e`` on ``(seed, e)``. So a run that was killed and resumed on one process
    ends with the same weights bit for bit, and torch's global random state does not change.

    **Several processes.** Under ``accelerate launch`` (or ``torchrun``) every process calls ``fit`` with the same
    arguments. DDP averages the gradients. With ``--use_fsdp --fsdp_version 2`` weights, gradients, optimizer and
    average are sharded instead, and every process has the whole flow again when ``fit`` returns. Each process takes
    ``batch_size`` rows and draws by ``(seed, n, process)``. A callback that ends the run, an interrupt or a failure on
    one process ends all processes after the same step. Only the main process writes and shows progress; ``Run.history``
    is the same on all. On the CPU ``accelerate launch --cpu`` starts one process and ignores ``--num_processes``; start
    several with ``ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2`` (or ``--use_fsdp
    --fsdp_version 2`` instead of ``--multi_gpu``). All processes must see ``out`` under the same name. A checkpoint can
    be resumed with another number of processes if ``batch_size`` times processes stays the same: each step then takes
    the same rows, and with ``across_processes`` the same draws.

    Args:
        flow: the flow; it is moved to ``device``. Parameters of its transforms are trained too if the loss is a
            likelihood.
        objective: the loss that is minimised. Its own parameters are trained if they require gradients.
        data: a tensor ``[N, *event]``, a pair ``(x, context)`` of tensors, a map-style ``Dataset`` of ``x`` or
            ``(x, context)``, or a loader of batches of these. A dataset whose items torch cannot collate needs a method
            ``collate(items) -> batch``. If an item has several samples (``objective.samples_per_item``; two for given
            pairs), ``x`` is ``[N, samples_per_item, *event]``. Floating data are converted to the flow's dtype. An
            objective that learns from the flow's own draws (``samples_per_item`` is 0: variational inference) takes
            the contexts alone, or no data if the flow is unconditional. Rows of tensors and datasets are drawn without
            replacement, and the last partial batch of an epoch is dropped; a loader decides for itself (with several
            processes it must return different rows on each). A ``UserWarning`` reports a first batch that, after
            transforms, is far from the draws of the base in mean or scale.
        steps: the number of optimizer steps.
        weights: ``[N]``, how often each row of tensors or of a map-style dataset counts (2 equals two copies). Rows are
            then drawn with replacement in proportion to their weights, so the mean loss of a step estimates the
            weighted mean for every objective and coupling. ``validation`` data are not weighted; pass a function for
            that.
        batch_size: rows per step and process; a loader decides its own. Without data, the number of draws.
        lr: the learning rate, which ``schedule`` multiplies.
        seed: the seed of all draws and of the order of the data.
        out: a folder for ``history.csv``, ``tensorboard/``, ``checkpoints/`` and, at the end, ``model/`` (read it with
            ``cflow.load``). Default: no files. Only one run at a time may write there. After an interrupted run
            ``cflow.load(out)`` returns the flow of the newest checkpoint.
        resume: whether to continue from the newest checkpoint in ``out``, or start if there is none. More steps than
            before are allowed, but a schedule that depends on the last step then differs from that of one long run.
        validation: data of the same kinds, whose loss is recorded every ``validate_every`` steps with averaged weights,
            in evaluation mode, without gradients and always with the same draws. Processes share its batches (but each
            reads a whole loader). Or a function ``validation(flow) -> float`` that is called in the same way.
        validate_every: steps between validations.
        patience: consecutive validations without improvement after which the run ends. The flow then has the weights
            of the lowest validation loss (``Run.best_step``), also if the run takes all its steps; the untrained flow
            is evaluated too. Default: the run takes all steps and keeps the last weights.
        weight_decay: decoupled weight decay of parameters with two dimensions or more.
        betas: AdamW's decay rates of the gradient's mean and square.
        clip: the largest norm of the gradient; ``None`` for no limit. The history has the norm before clipping.
        schedule: ``schedule(step, steps) -> factor`` of the learning rate.
        ema: how weights are averaged; ``None`` for no average.
        precision: ``"bf16"`` computes the loss under bfloat16 autocast; weights and their average keep their dtype.
        accumulate: the number of pieces in which each batch is computed, to save memory. Draws and couplings are those
            of the whole batch, so the result is the same up to rounding. But layers with batch statistics (batch norm)
            see each piece separately, which a warning reports, and dropout draws for each piece.
        pool: the number of steps whose batches are drawn and coupled together, so that a coupling sees ``pool *
            batch_size`` rows. If it keeps fewer, all steps get equal parts. Draws are those of the pool's first step.
        across_processes: whether to draw and couple the rows of all processes together. Each process then prepares the
            global batch without communication (not from a loader) and takes its part. ``n`` processes make the same
            steps as one with ``n * batch_size`` rows, except for draws in the loss (dropout).
        prefetch: the number of preparations (batches or pools) made ahead of the step; results do not depend on it.
            Default: one more than ``workers`` for a coupling or path that takes time (``objective.prepares_ahead``,
            ``path.simulates``), otherwise
            0, since a few draws are faster in line. With a base or a transform that is learned it is always 0. On
            accelerators preparation uses the flow's device and the caller's stream, so only a coupling on the host
            saves time (not yet run on a GPU; ``prefetch=0`` turns it off).
        workers: the number of threads that prepare. Default: the cores available to this process minus torch's threads
            if the flow is on the CPU (minus one otherwise), from 1 to 8. Optimal transport plans are computed outside
            Python's lock, so threads are enough; leave a core free for them (``torch.set_num_threads``).
        checkpoint_every: steps between checkpoints.
        keep: how many checkpoints are kept, the newest ones.
        save_model: whether to save the flow itself, in ``model/`` at the end and in every checkpoint. Use False if you
            save there a larger flow that contains this one, such as one with standardised units. An interrupted run
            then has no flow to load, but can be resumed.
        log_every: steps between rows of the history.
        device: where to train. Default: accelerate chooses.
        progress: whether to show a progress bar. Default: only in a terminal or a notebook.
        log_with: more places for the history than ``history.csv`` and ``tensorboard/``: the name of a tracker of
            accelerate whose package is installed (``"wandb"``, ``"trackio"``, ``"mlflow"`` and so on), a custom
            ``accelerate.tracking.GeneralTracker``, or a list of these.
        callbacks: functions ``callback(step, flow, row)`` that are called after every step, on every process that has
            any. ``row`` is the row of the history that ends at this step, or None. A callback that returns True ends
            the run. The flow is in training mode: call ``flow.eval()`` before you use it, and ``flow.train()`` after.
            Under FSDP the flow is gathered after every step for callbacks: they can evaluate it, but not change it.

    Cost: on an accelerator the host waits for it only at rows, validations and checkpoints.

    Raises:
        ValueError: for data that do not fit the flow, have NaN, or are fewer than a batch; for data that are missing or
            not used by the objective; for a transform with parameters to train under a matching loss, which would
            collapse it; for a loader with ``across_processes``; for a folder with checkpoints if ``resume`` is False;
            for a checkpoint that is damaged or has other settings; for a folder in which another process is training.
        FloatingPointError: if the loss, a gradient or a validation loss is not finite (with ``patience``: if no
            validation loss is finite). The weights are those before this step. On the CPU it is raised at this step, on
            an accelerator at the next row, validation or checkpoint.
        KeyboardInterrupt: at Ctrl-C or SIGTERM, after a checkpoint of the last complete step.
        RuntimeError: on processes that stop because another one failed; the message states which one, and its error.

    Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2017, arXiv:1711.05101 (AdamW).

    Example:
        >>> from cflow import ContinuousFlow, bases, fields, objectives, paths
        >>> flow = ContinuousFlow(fields.MLP(2), bases.Normal(2), path=paths.Linear())
        >>> run = fit(flow, objectives.FlowMatching(), torch.randn(512, 2), steps=20, log_every=10)
        >>> [row["step"] for row in run.history]
        [10, 20]
    """
    options = Options(
        steps=steps, batch_size=batch_size, lr=lr, seed=seed, out=None if out is None else Path(out), resume=resume,
        validate_every=validate_every, patience=patience, weight_decay=weight_decay, betas=betas, clip=clip,
        schedule=schedule, ema=ema, precision=precision, accumulate=accumulate, pool=pool,
        across_processes=across_processes, prefetch=prefetch, workers=workers, checkpoint_every=checkpoint_every,
        keep=keep, save_model=save_model, log_every=log_every, device=device,
        progress=is_watched() if progress is None else progress,
        log_with=tuple(log_with) if isinstance(log_with, list | tuple) else (log_with,),
        callbacks=check_callbacks(callbacks),
    )  # fmt: skip
    check_options(flow, objective, validation, options)
    processes = _processes(options)
    with processes.together():
        sharded = wants_sharding(processes.accelerator)
        check_presence(flow, objective, data, "data")
        rank, world = processes.rank, processes.world
        items = objective.samples_per_item
        source = batches_of(data, batch_size, seed, rank, world, across_processes, items, weights)
        check_data(flow, objective, source, "data", drops_last=True, processes=world)
        judged = _judged(flow, objective, validation, processes, options)
        settings = settings_of(flow, objective, source, options)

    place = processes.accelerator.device if device is None else torch.device(device)
    loss = MeanLoss(flow, objective, precision == "bf16").to(place)
    trained = Trained(loss, processes.accelerator, processes)
    if sharded:
        trained.shard(place)
        optimizer = _optimizer(loss, options)
    else:
        optimizer = trained.prepare(_optimizer(loss, options), placed=device is not None)
    average = None if ema is None else Average(flow, ema)
    best = None if patience is None else Best(flow, patience, validate_every)
    loop = Loop(
        flow=flow, objective=objective, trained=trained, optimizer=optimizer, processes=processes, average=average,
        best=best, source=source, validation=judged, options=options, settings=settings,
        checkpoints=None if options.out is None else Checkpoints(options.out, processes, keep),
        state=State(trained.module, optimizer, average, best),
    )  # fmt: skip
    with ExitStack() as held:
        if options.out is not None:
            processes.from_main(lambda: held.enter_context(claimed(options.out, "fit")))
            processes.from_main(loop.checkpoints.clear)
        resumed_from = _resume(loop)
        loop.track()
        stopped = _run(loop, resumed_from)
        if options.out is not None and options.save_model:
            processes.from_main(lambda: save(flow, options.out / "model") and None)
    history, seconds = processes.from_main(lambda: (loop.tracker.history, loop.seconds))
    best_step = None if best is None else best.step
    return Run(loop.step, seconds, history, options.out, resumed_from, stopped, best_step)


def _processes(options: Options) -> Processes:
    """Returns the processes that a launcher has started, or only this one."""
    from accelerate import Accelerator

    group_was_there = group_is_open()
    directory = None if options.out is None else str(options.out)
    accelerator = Accelerator(log_with=list(options.log_with) or None, project_dir=directory)
    accelerator.gradient_accumulation_steps = 1  # the loop itself weights its pieces, for every launcher
    if accelerator.mixed_precision not in ("no", options.precision):
        raise ValueError(
            f"fit(precision={options.precision!r}): accelerate was launched with mixed precision "
            f"{accelerator.mixed_precision!r}; launch it without."
        )
    return Processes(accelerator, group_was_there)


def _judged(flow: Any, objective: Any, validation: Any, processes: Processes, options: Options) -> Any:
    """Returns the batches for validation, the function of the flow, or None."""
    if validation is None or callable(validation):
        return validation
    check_presence(flow, objective, validation, "validation")
    rows = options.batch_size * processes.world
    judged = batches_of(validation, rows, options.seed, samples_per_item=objective.samples_per_item)
    check_data(flow, objective, judged, "validation", drops_last=False)
    return judged


def _run(loop: Loop, resumed_from: int | None) -> bool:
    """Trains to the end, restores flow and processes in every case, and returns whether the run was stopped."""
    flow, processes, options = loop.flow, loop.processes, loop.options
    before = records_of(flow)
    if resumed_from is None:  # otherwise the record, with this training, is from the checkpoint
        flow.record(loop.objective)
    failed = True
    bar = _bar(loop) if options.progress and processes.is_main else None
    try:
        with modes_kept(flow), loop.interrupt.listening():
            flow.train()
            stopped = loop.run(bar)
        processes.together_out, failed = True, False
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_interrupted(loop)) from None
    finally:
        loop.tracker.close()
        if bar is not None:
            bar.close()
        learned = loop.step > 0 and (loop.best is None or loop.best.step > 0)
        if failed and not learned:
            recall(flow, before)
        if loop.average is not None:
            loop.average.copy_to_module()
        if loop.best is not None:
            loop.best.copy_to_module()
        for parameter in loop.parameters:
            parameter.grad = None
        if processes.together_out:  # a process that fails alone cannot get the shards of the others
            loop.trained.make_plain()
    return stopped


def _optimizer(module: nn.Module, options: Options) -> torch.optim.Optimizer:
    """Builds AdamW, fused if the device supports it; gains and biases have no weight decay."""
    trained = [each for each in module.parameters() if each.requires_grad]
    matrices = [each for each in trained if each.dim() >= 2]
    # Scalars have their own group: sharded and whole parameters cannot be updated together.
    others = [[each for each in trained if each.dim() == dim] for dim in (1, 0)]
    groups = [{"params": matrices}, *({"params": each, "weight_decay": 0.0} for each in others)]
    fused = all(each.is_floating_point() and each.device.type in ("cpu", "cuda") for each in trained)
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=options.lr,
        betas=options.betas,
        weight_decay=options.weight_decay,
        fused=True if fused else None,
    )


def _resume(loop: Loop) -> int | None:
    """Restores the newest checkpoint, or raises; returns its step, or None if there is no checkpoint."""
    options = loop.options
    saved = [] if loop.checkpoints is None else loop.processes.from_main(loop.checkpoints.steps)
    if not saved:
        return None
    newest = loop.checkpoints.path(saved[-1])
    if not options.resume:
        raise ValueError(
            f"fit(out={str(options.out)!r}): the folder has checkpoints of an earlier run (up to step {saved[-1]}); "
            f"pass resume=True to continue it, or another folder."
        )
    note = loop.processes.from_main(lambda: loop.checkpoints.read_note(saved[-1]))
    with loop.processes.together():
        check_settings(note, loop.settings, newest, loop.processes.several)
    if options.steps < saved[-1]:
        raise ValueError(
            f"fit(steps={options.steps}, resume=True): {newest} already has {saved[-1]} steps; pass more steps, or "
            f"another folder."
        )
    loop.restore(saved[-1], note)
    return loop.step


def _bar(loop: Loop) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=loop.options.steps, initial=loop.step, unit="step", dynamic_ncols=True)


def _interrupted(loop: Loop) -> str:
    """Saves the last complete step if possible, and returns the message that states where."""
    cause = loop.interrupt.name or ("on another process" if loop.processes.several else "KeyboardInterrupt")
    what = f"fit: interrupted ({cause}) after step {loop.step}"
    if loop.checkpoints is None:
        return f"{what}; no checkpoint was written (out=None)"
    if not loop.whole or loop.due or not loop.processes.together_out:
        saved = loop.checkpoints.steps()
        kept = f"the last checkpoint is {loop.checkpoints.path(saved[-1])}" if saved else "there is no checkpoint yet"
        return f"{what}, in the middle of a step; {kept}"
    if loop.step not in loop.processes.from_main(loop.checkpoints.steps):
        loop.save()
    return f"{what}; the checkpoint is {loop.checkpoints.path(loop.step)}: continue with resume=True"
