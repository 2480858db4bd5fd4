"""Trains a flow with an objective on data: ``fit``."""

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
    """What :func:`fit` did.

    Attributes:
        steps: optimizer steps made in all, those before a resumption included.
        seconds: time they took.
        history: rows with ``step, loss, grad_norm, lr, seconds`` (means since the row before), what the objective
            logs (``objective.metric_names``: of ``FFJORD`` ``nats``, ``nfe`` and so on) and, where it was measured,
            ``validation`` with ``validation_...`` of what is logged.
        out: the folder written, or ``None``.
        resumed_from: the step of the checkpoint that the run went on from, or ``None``.
        stopped: whether a callback, or ``patience``, ended the run early.
        best_step: the step whose weights the flow holds, where ``patience`` was given.
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
        """The last validation loss, where there was one."""
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
    r"""Trains a flow: AdamW on the mean of ``objective`` over batches of ``data``.

    The flow is trained in place and holds the averaged weights afterwards (the raw ones stay in the checkpoint); what
    it was trained with is added to ``flow.trained_by``. All draws are by counter: those of step ``n`` depend on
    ``(seed, n)``, the order of epoch ``e`` on ``(seed, e)``. So a run that was killed and is resumed on one process
    ends with the same weights bit for bit, and torch's global random state is left as it was.

    **Several processes.** Under ``accelerate launch`` (or ``torchrun``) every process calls ``fit`` alike. Gradients
    are averaged by DDP, or, with ``--use_fsdp --fsdp_version 2``, weights, gradients, optimizer and average are
    sharded; the flow is whole again on every process when ``fit`` returns. Each process takes ``batch_size`` rows of
    its own, and draws by ``(seed, n, process)``. A callback that ends the run, an interrupt or a failure on one process
    ends all after the same step. Only the main process writes and shows progress; ``Run.history`` is the same on all.
    On the CPU, ``accelerate launch --cpu`` starts one process whatever ``--num_processes`` says: start several with
    ``ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2`` (or ``--use_fsdp --fsdp_version 2`` in
    place of ``--multi_gpu``). All processes must see ``out`` under the same name. A checkpoint of any number of
    processes can be resumed on any other with the same ``batch_size`` times processes: each step then takes the same
    rows, and with ``across_processes`` the same draws.

    Args:
        flow: the flow; it goes to the device that accelerate chooses, or to ``device``. What is learned in its
            transforms is trained as well, by objectives whose loss is a likelihood.
        objective: what is minimised. Its own parameters are trained where they require gradients.
        data: a tensor ``[N, *event]``, a pair ``(x, context)`` of tensors, a map-style ``Dataset`` of ``x`` or
            ``(x, context)``, or a loader of batches of these. A dataset whose items torch's default
            rules cannot collate has a method ``collate(items) -> batch``. Where an item holds several samples
            (``objective.samples_per_item``; two for given pairs), ``x`` is ``[N, samples_per_item, *event]``. Floating
            data are brought to the flow's dtype. For an objective that learns from the flow's own draws
            (``samples_per_item`` is 0: variational inference) the data are the contexts alone, of the same kinds, and
            there are none where the flow is unconditional. Tensors and datasets are drawn without replacement and the
            last partial batch of an epoch is left out; a loader decides for itself (under several processes it must
            give each its own rows). A ``UserWarning`` says where the first batch, transforms applied, lies or
            spreads far from what the base draws.
        steps: number of optimizer steps.
        weights: ``[N]``, how often each row of tensors or of a map-style dataset counts (two: as if it were there
            twice). Rows are then drawn with replacement, as often as their weights say, so that the mean loss of a
            step estimates the weighted mean, whatever the objective and the coupling. ``validation`` counts each of
            its rows once, unless it is a function that does otherwise.
        batch_size: items per step and process; a loader's batches are taken as they are. Without data, the number of
            draws.
        lr: learning rate, multiplied by ``schedule``.
        seed: of all draws, and of the order of the data.
        out: folder for ``history.csv``, ``tensorboard/``, ``checkpoints/`` and, at the end, ``model/`` (read it with
            ``cflow.load``). Without it nothing is written anywhere. One run at a time writes there. Of a run that was
            interrupted, ``cflow.load(out)`` gives the flow of the newest checkpoint.
        resume: go on from the newest checkpoint in ``out`` (from the start where there is none). More steps than before
            are allowed, but a schedule that falls towards the last step then takes another course than in one long run.
        validation: data of the same kinds, whose loss is recorded every ``validate_every`` steps: averaged weights,
            evaluation mode, no gradients, always the same draws. Processes share its batches (of a loader each goes
            through its own). Or a function ``validation(flow) -> float`` of your own, called under the same conditions.
        patience: validations in a row without an improvement after which the run ends. The flow then holds the weights
            of the lowest validation loss (``Run.best_step``), also where the run takes all its steps; the untrained
            flow is evaluated, too. None: the run takes all steps, and the last weights stay.
        weight_decay: decoupled weight decay of parameters with two dimensions or more.
        betas: AdamW's decay rates of the gradient's mean and square.
        clip: largest norm of the gradient; ``None`` for no limit. The history holds the norm before clipping.
        schedule: ``schedule(step, steps) -> factor`` of the learning rate; :class:`Cosine` unless given.
        ema: how weights are averaged; ``None`` for not at all.
        precision: ``"bf16"`` runs the loss under bfloat16 autocast; weights and their average stay as they are.
        accumulate: computes each batch in that many pieces, to save memory. Draws and couplings are those of the whole
            batch, so the result is the same up to rounding; but layers that look at the batch (batch norm) see each
            piece alone, of which a warning tells, and dropout draws for each.
        pool: draws and couples the batches of that many steps together and hands them out one by one, so that a
            coupling sees ``pool * batch_size`` rows. Where it keeps fewer, each step gets its equal part of what is
            left. Draws are then those of the pool's first step.
        across_processes: draws and couples the rows of all processes together: every one of them reads and prepares the
            global batch (not from a loader; no communication) and takes its part. ``n`` processes then make the steps
            of one with ``n * batch_size`` rows, but for what the loss draws itself (dropout).
        prefetch: preparations (batches, or pools of them) made ahead of the step; one more than ``workers`` unless
            given where that pays (``objective.prepares_ahead``: a coupling that takes time), else none: a few draws are
            quicker in line (0). The results do not depend on it. Where the base or a transform is learned,
            preparation is always in line. On accelerators it runs on the flow's device and the caller's stream, and
            only what a coupling computes on the host is taken off the step's way (not run on a GPU yet;
            ``prefetch=0`` turns it off).
        workers: threads that prepare. Unless given: the cores that this process may use, less torch's threads where
            the flow is on the CPU (one elsewhere), at least 1 and at most 8. Optimal transport plans are computed
            outside Python's lock, so that threads are enough; leave a core free for them (``torch.set_num_threads``).
        checkpoint_every: steps between checkpoints; the newest ``keep`` stay.
        keep: how many checkpoints stay.
        save_model: whether the flow itself is saved, in ``model/`` at the end and in every checkpoint. False where the
            flow is only part of what you will save there yourself, such as one that is trained in standardised units:
            an interrupted run is then no flow to load, but can be resumed.
        log_every: steps between rows of the history.
        device: where to train; accelerate chooses unless given.
        progress: whether to show a bar; unless given, where a person watches: in a terminal or a notebook.
        log_with: where else the history goes, beside ``history.csv`` and ``tensorboard/``: the name of a tracker of
            accelerate (``"wandb"``, ``"trackio"``, ``"mlflow"`` and so on), whose package is installed, or an
            ``accelerate.tracking.GeneralTracker`` of your own, or a list of these.
        callbacks: called as ``callback(step, flow, row)`` after every step, on every process that has any; ``row`` is
            the row of the history that the step ends, or None where it ends none. One that returns True ends the run.
            The flow is in training mode: call ``flow.eval()`` before it is used, and ``flow.train()`` after. Under
            FSDP the flow is gathered for them after every step: it can be evaluated, but not changed.

    Cost: on an accelerator the host waits for it only at rows, validations and checkpoints.

    Raises:
        ValueError: for data that do not fit the flow, hold NaN, or are fewer than a batch; for data that are missing,
            or that the objective does not read; for a transform with parameters to train, which a matching loss
            would collapse; for a loader with ``across_processes``; for a folder with checkpoints
            when ``resume`` is False; for a damaged checkpoint, or one of a run with other settings; for a folder in
            which another process is training.
        FloatingPointError: where the loss or a gradient is not finite, or a validation (with ``patience``: none of
            them is); the weights stay as they were before that step. On the CPU it is raised at the step, on an
            accelerator at the next row, validation or checkpoint.
        KeyboardInterrupt: at Ctrl-C or SIGTERM, after a checkpoint of the last complete step.
        RuntimeError: on processes that stop because another one failed; the message says which and how.

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
    """Finds the processes that a launcher has started, or this one alone."""
    from accelerate import Accelerator

    group_was_there = group_is_open()
    directory = None if options.out is None else str(options.out)
    accelerator = Accelerator(log_with=list(options.log_with) or None, project_dir=directory)
    accelerator.gradient_accumulation_steps = 1  # the loop weighs its pieces itself, whatever the launcher says
    if accelerator.mixed_precision not in ("no", options.precision):
        raise ValueError(
            f"fit(precision={options.precision!r}): accelerate was launched with mixed precision "
            f"{accelerator.mixed_precision!r}; launch it without, and choose the precision here."
        )
    return Processes(accelerator, group_was_there)


def _judged(flow: Any, objective: Any, validation: Any, processes: Processes, options: Options) -> Any:
    """Gives what validation looks at: batches, a function of the flow, or nothing."""
    if validation is None or callable(validation):
        return validation
    check_presence(flow, objective, validation, "validation")
    rows = options.batch_size * processes.world
    judged = batches_of(validation, rows, options.seed, samples_per_item=objective.samples_per_item)
    check_data(flow, objective, judged, "validation", drops_last=False)
    return judged


def _run(loop: Loop, resumed_from: int | None) -> bool:
    """Trains to the end, and leaves flow and processes in good order however it comes; says whether it was stopped."""
    flow, processes, options = loop.flow, loop.processes, loop.options
    before = records_of(flow)
    if resumed_from is None:  # else the checkpoint has brought the record, this training included
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
        if processes.together_out:  # a process that fails alone cannot ask the others for their shards
            loop.trained.make_plain()
    return stopped


def _optimizer(module: nn.Module, options: Options) -> torch.optim.Optimizer:
    """Builds AdamW, fused where the device has it; gains and biases are not decayed."""
    trained = [each for each in module.parameters() if each.requires_grad]
    matrices = [each for each in trained if each.dim() >= 2]
    # Numbers by themselves: sharded and whole parameters cannot be updated in one go.
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
    """Goes back to the newest checkpoint, or says why not; gives its step, or None where there is none."""
    options = loop.options
    saved = [] if loop.checkpoints is None else loop.processes.from_main(loop.checkpoints.steps)
    if not saved:
        return None
    newest = loop.checkpoints.path(saved[-1])
    if not options.resume:
        raise ValueError(
            f"fit(out={str(options.out)!r}): the folder holds checkpoints of an earlier run (up to step {saved[-1]}), "
            f"which this one would overwrite; pass resume=True to go on from there, or another folder."
        )
    note = loop.processes.from_main(lambda: loop.checkpoints.read_note(saved[-1]))
    with loop.processes.together():
        check_settings(note, loop.settings, newest, loop.processes.several)
    if options.steps < saved[-1]:
        raise ValueError(
            f"fit(steps={options.steps}, resume=True): {newest} has gone {saved[-1]} steps already; "
            f"pass steps >= {saved[-1]}, or another folder."
        )
    loop.restore(saved[-1], note)
    return loop.step


def _bar(loop: Loop) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=loop.options.steps, initial=loop.step, unit="step", dynamic_ncols=True)


def _interrupted(loop: Loop) -> str:
    """Saves what is complete and says where."""
    cause = loop.interrupt.name or ("on another process" if loop.processes.several else "KeyboardInterrupt")
    what = f"fit: interrupted ({cause}) after step {loop.step}"
    if loop.checkpoints is None:
        return f"{what}; nothing was written (out=None)"
    if not loop.whole or loop.due or not loop.processes.together_out:
        saved = loop.checkpoints.steps()
        kept = f"the last checkpoint is {loop.checkpoints.path(saved[-1])}" if saved else "there is no checkpoint yet"
        return f"{what}, in the middle of a step; {kept}"
    if loop.step not in loop.processes.from_main(loop.checkpoints.steps):
        loop.save()
    return f"{what}; the checkpoint is {loop.checkpoints.path(loop.step)}: go on with resume=True"
