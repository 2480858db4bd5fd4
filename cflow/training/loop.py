"""The training loop: optimizer steps with checks, averages, history and checkpoints."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from cflow.arguments import calling_line
from cflow.io import write
from cflow.modes import evaluating
from cflow.record import TrainingEntry, recall, records_of
from cflow.training.batches import LoaderBatches, RawBatch
from cflow.training.best import Best
from cflow.training.checkpoints import Checkpoints, State
from cflow.training.checks import check_batch
from cflow.training.ema import Average
from cflow.training.options import Options
from cflow.training.preparation import ahead, cut, default_workers, merged, pieces, rows_of
from cflow.training.processes import Processes
from cflow.training.safety import Interrupt, Watch
from cflow.training.scale import warn_of_scale
from cflow.training.sharding import Trained
from cflow.training.streams import FORWARD, PREPARE, VALIDATION, generator_for, stream
from cflow.training.tracking import Boards, Tracker

__all__ = ["Loop"]

Parts = list[tuple[Any, float]]  # pieces of a prepared batch, each with its share of the rows


@dataclasses.dataclass
class Loop:
    """The state of one run. ``run`` makes the steps and calls the other methods."""

    flow: Any
    objective: Any
    trained: Trained
    optimizer: torch.optim.Optimizer
    processes: Processes
    average: Average | None
    best: Best | None
    source: Any
    validation: Any  # batches, or a function of the flow
    options: Options
    settings: dict[str, Any]
    checkpoints: Checkpoints | None
    state: State  # saved in checkpoints
    tracker: Tracker = dataclasses.field(init=False)
    step: int = 0
    epoch: int = 0  # epoch and position at which the pool of the next step starts
    used: int = 0
    mark: int | None = None  # checksum of the batch before this position
    seconds: float = 0.0
    whole: bool = True  # False while weights and average are being updated
    looked: bool = False  # whether the scale of the data has been checked
    due: bool = False  # whether the row or the validation of the last step is still missing

    def __post_init__(self) -> None:
        self.line = calling_line()  # of fit, since batches may be checked in another thread
        self.parameters = [each for each in self.trained.loss.parameters() if each.requires_grad]
        self.device = self.parameters[0].device
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        deferred = self.device.type != "cpu" and bool(self.optimizer.defaults.get("fused"))
        self.watch = Watch(self.optimizer, self.device, deferred)
        self.watch.several = self.processes.several
        self.metric_names: tuple[str, ...] = tuple(self.objective.metric_names)
        self.pending: list[tuple[Tensor, ...]] = []  # loss, gradient norm and metrics of each step
        self.source.marks = self.checkpoints is not None
        self.interrupt = Interrupt(patience=5.0 if self.processes.several else 0.0)
        base, transform = getattr(self.flow, "base", None), self.flow.transform
        held = [*(() if base is None else base.parameters()), *transform.parameters()]
        # If base or transform change with the steps, preparation must be in line, not ahead.
        self.learned = transform.is_trained or any(each.requires_grad for each in held)
        self.learned |= self.trained.sharded and bool(held)
        workers = self.options.workers or default_workers(self.device)
        self.workers = workers
        ahead_pays = self.objective.prepares_ahead or getattr(getattr(self.flow, "path", None), "simulates", False)
        self.depth = self.options.prefetch if self.options.prefetch is not None else (workers + 1) * ahead_pays
        # Preparation with learned parts needs sharded parameters, which all processes gather together.
        self.lends = self.trained.gathered if self.learned else nullcontext
        self.depth = 0 if self.learned else self.depth
        (self.calls,) = self.processes.maxima(len(self.options.callbacks))

    def prepare(self, raw: RawBatch, *counters: int) -> Any:
        """Prepares a raw batch for the objective's loss; all draws come from the stream of ``counters``."""
        generator = generator_for(self.device, self.options.seed, *counters)
        with torch.no_grad():
            return self.objective.make_batch(self.flow, raw.x, raw.context, generator)

    def check(self, raw: RawBatch) -> RawBatch:
        """Raises if the shapes of a raw batch are not those of the flow."""
        check_batch(self.flow, self.objective, raw.x, raw.context, "data")
        if not self.looked:
            self.looked = True
            if self.processes.is_main:
                warn_of_scale(self.flow, self.objective, raw.x, raw.context, self.line)
        return raw

    def prepare_pool(self, first: int, raws: list[RawBatch]) -> list[Parts]:
        """Draws and couples the batches of a pool together, and cuts them into the parts of every step."""
        world, across = self.processes.world, self.options.across_processes
        rank = 0 if across else self.processes.rank
        raw = merged([self.check(raw) for raw in raws])
        batch = self.prepare(raw, PREPARE, first, rank)
        if len(raws) == 1 and not across and self.options.accumulate == 1:
            return [[(batch, 1.0)]]
        given = len(tree_leaves(raw.x)[0])
        rows = rows_of(batch, given)
        wanted = len(raws) * (world if across else 1)
        if rows < wanted:
            raise ValueError(
                f"fit: {type(self.objective).__name__}.prepare left {rows} of {given} rows, too few for {wanted} "
                f"pieces; pass a larger batch_size, or a coupling that keeps more rows."
            )
        parts = []
        for piece, size in cut(batch, rows, len(raws)):
            total, share = size, 1.0
            if across:
                piece, size = cut(piece, total, world)[self.processes.rank]
                share = size * world / total  # processes average gradients without regard to their rows
            parts.append([(part, share * own) for part, own in pieces(piece, size, self.options.accumulate)])
        return parts

    def batches(self, steps: int) -> Iterator[tuple[Parts, int, int, int | None]]:
        """Yields the parts of each step, and the epoch and position from which a resumed run reads after it."""
        pool = self.options.pool
        start = self.step - self.step % pool
        fetch = lambda: [self.source.fetch() for _ in range(pool)]
        place = self.epoch, self.used, self.mark
        made = ahead(fetch, self.prepare_pool, start, steps, self.depth, self.workers, pool, self.device)
        try:
            for first, (raws, parts) in zip(range(start, steps, pool), made):
                after = raws[-1].epoch, raws[-1].used, raws[-1].mark
                for number in range(first, min(first + pool, steps)):
                    if number >= self.step:
                        yield parts[number - first], *(after if number == first + pool - 1 else place)
                place = after
        finally:
            made.close()

    def track(self) -> None:
        """Starts or continues the history; only the main process writes it."""
        writes = self.options.out is not None and self.processes.is_main
        boards = Boards(self.processes.accelerator, self.options)
        self.tracker = Tracker(self.options.out if writes else None, self.step, boards)

    def run(self, bar: Any) -> bool:
        """Trains up to the last step; returns whether a callback or ``patience`` ended the run before."""
        options, started, steps = self.options, time.perf_counter() - self.seconds, self.options.steps
        self.tracker.begin(self.metric_names)
        if self.best is not None and self.step == 0:
            self.validate()  # not recorded; the first step may be worse
        if self.best is not None and self.step < steps and self.best.is_over(self.step):
            return True  # a resumed run that had already ended
        if self.step == steps:
            return False
        batches = self.batches(steps)
        stopped = False
        try:
            while self.step < steps and not stopped:
                with self.processes.together(), self.lends():
                    parts, *place = next(batches)
                self.update(parts, steps)
                self.step, (self.epoch, self.used, self.mark) = self.step + 1, place
                self.seconds = time.perf_counter() - started
                looks = self.validation is not None and (self.step % options.validate_every == 0 or self.step == steps)
                self.due = looks or self.step % options.log_every == 0 or self.step == steps
                row = self.row(looks) if self.due else None
                stopped, interrupted = self.call_back(row)
                last = stopped or self.step == steps
                if row is not None or last:
                    row = self.row(False) if row is None else row
                    if last and self.validation is not None and not looks:
                        row |= self.validate()
                        looks = True
                    self.record(row, bar)
                    self.due = False
                    self.seconds = time.perf_counter() - started
                if looks and self.best is not None and self.best.is_over(self.step):
                    stopped = last = True
                if bar is not None:
                    bar.update()
                if self.step % options.checkpoint_every == 0 or last:
                    self.save()
                if interrupted and not stopped:
                    self.processes.together_out = True
                    raise KeyboardInterrupt
        finally:
            batches.close()
        if self.best is not None and not math.isfinite(self.best.loss):
            self.processes.together_out = True
            raise FloatingPointError(
                f"fit: none of the validation losses up to step {self.step} is finite; look for extreme values in the "
                f"validation data, or scale the data."
            )
        return stopped

    def call_back(self, row: dict[str, Any] | None) -> tuple[bool, bool]:
        """Calls all callbacks; returns whether one on any process ends the run, and whether there was an interrupt."""
        stopped = False
        if self.calls:
            with self.processes.together(), self.trained.gathered():
                # Each gets a copy of the row, so changes to it affect neither the history nor other callbacks.
                given = [None if row is None else dict(row) for _ in self.options.callbacks]
                answers = [each(self.step, self.flow, own) for each, own in zip(self.options.callbacks, given)]
                stopped = any(answer is True for answer in answers)
        stopped, interrupted = self.processes.maxima(int(stopped), int(self.interrupt.name is not None))
        return bool(stopped), bool(interrupted)

    def update(self, parts: Parts, steps: int) -> None:
        """Makes one optimizer step; raises before it if the loss or a gradient is not finite."""
        options, total = self.options, None
        logged = dict.fromkeys(self.metric_names, 0.0)
        self.optimizer.zero_grad(set_to_none=True)
        with stream(self.device, options.seed, FORWARD, self.step, self.processes.rank):
            for number, (part, share) in enumerate(parts):
                last = number == len(parts) - 1
                with self.trained.piece(last):
                    loss = self.trained.module(part) * share
                    logged = {name: logged[name] + value * share for name, value in self.metrics().items()}
                    self.trained.backward(loss, last)
                total = loss.detach() if total is None else total + loss.detach()
        norm = self.trained.clip(self.parameters, options.clip or float("inf"))
        if not self.watch.allows(self.step, total, norm):
            fine = math.isfinite(float(total)) and math.isfinite(float(norm))
            here = f"the loss is {float(total)} and the gradient norm {float(norm)}"
            if float(total) == math.inf and self.objective.entry().teaches == "density":
                here += (
                    " (a log-density of -inf: rows are outside the support of the flow; see the bounds of its base "
                    "and transforms)"
                )
            self.fail(self.step, "the loss is not finite on another process" if fine else here)
        factor = options.schedule(self.step, steps)
        for group, rate in zip(self.optimizer.param_groups, self.rates):
            group["lr"] = rate * factor
        self.whole = False
        self.optimizer.step()
        self.trained.share_buffers()
        if self.average is not None:
            self.average.update()
        self.whole = True
        # A number from the host is filled in on the device, which needs no copy and no wait.
        place = lambda each: each if isinstance(each, Tensor) else torch.full((), each, device=self.device)
        self.pending.append((total, norm, *map(place, logged.values())))

    def metrics(self) -> dict[str, Any]:
        """Returns the metrics that the objective logged with the last loss."""
        logged = self.objective.metrics if self.metric_names else {}
        if set(logged) != set(self.metric_names):
            raise ValueError(
                f"fit: {type(self.objective).__name__}.metric_names are {', '.join(self.metric_names)}, but its loss "
                f"logged {', '.join(logged) or 'none'}; log exactly these."
            )
        return {name: logged[name] for name in self.metric_names}

    def fail(self, step: int, what: str) -> None:
        """Raises for a loss or gradient that is not finite; the weights are those before this step."""
        self.optimizer.zero_grad(set_to_none=True)
        self.processes.together_out = True
        rows = self.source.rows(step)
        batch = "" if rows is None else f" (batch of rows {rows[:8].tolist()}{'...' if len(rows) > 8 else ''})"
        saved = self.checkpoints.steps() if self.checkpoints is not None else []
        kept = f"the last checkpoint is {self.checkpoints.path(saved[-1])}" if saved else "no checkpoint was written"
        raise FloatingPointError(
            f"fit: at step {step}{batch} {what}; the weights are those before it, and {kept}. "
            f"Lower lr or clip{'' if rows is None else ', or check these rows'}."
        )

    def look(self) -> None:
        """Raises for a step with a non-finite loss or gradient that the accelerator has noted."""
        step = self.watch.failed_at()
        if step is not None:
            self.fail(step, "the loss or a gradient is not finite")

    def means(self) -> list[list[float]]:
        """Returns losses, gradient norms and metrics since the last row, averaged over the processes."""
        if not self.pending:
            return []
        read = torch.stack([torch.stack([each.float() for each in step]) for step in self.pending])
        return self.processes.mean(read).double().tolist()

    def row(self, validates: bool) -> dict[str, Any]:
        """Computes a row of the history, the same on all processes: means since the last row."""
        self.look()
        read = torch.tensor(self.means(), dtype=torch.float64)
        loss, norm, *logged = read.mean(0).tolist()
        self.pending.clear()
        row = {"step": self.step, "loss": loss, "grad_norm": norm}
        seconds = self.processes.from_main(lambda: self.seconds)
        row |= {"lr": self.optimizer.param_groups[0]["lr"], "seconds": seconds, **dict(zip(self.metric_names, logged))}
        return row | self.validate() if validates else row

    def record(self, row: dict[str, Any], bar: Any) -> None:
        """Adds a row to the history."""
        self.processes.from_main(lambda: self.tracker.add(row))
        if not self.processes.is_main:
            self.tracker.add(row)
        else:
            self.objective.review(self.tracker.history)
        if bar is not None:
            shown = [name for name in ("loss", *self.metric_names, "validation") if name in row]
            bar.set_postfix({name: f"{row[name]:.4g}" for name in shown}, refresh=False)

    def validate(self) -> dict[str, float]:
        """Returns the means of the validation loss and its metrics by column, and keeps the best weights.

        The flow has the averaged weights, and draws are always the same.
        """
        average = self.average.applied() if self.average is not None else nullcontext()
        with evaluating(self.flow), average:
            with self.processes.together(), self.trained.gathered(), torch.no_grad():
                if callable(self.validation):
                    looked = torch.tensor(_number(self.validation(self.flow)), dtype=torch.float64)
                    row = {"validation": float(self.processes.mean(looked))}
                else:
                    row = self._over_validation()
            if self.best is not None:
                self.best.look(self.step, row["validation"])
        if self.best is None and not math.isfinite(row["validation"]):
            self.processes.together_out = True
            raise FloatingPointError(
                f"fit: the validation loss at step {self.step} is {row['validation']}; lower lr, or check the "
                f"validation data for NaN."
            )
        return row

    def _over_validation(self) -> dict[str, float]:
        """Computes the means over the validation data.

        Processes share each batch of tensors and datasets, but each reads its own loader.
        """
        total, count, logged = 0.0, 0.0, dict.fromkeys(self.metric_names, 0.0)
        shared = not isinstance(self.validation, LoaderBatches)
        for number, (x, context) in enumerate(self.validation.once()):
            batch = self.prepare(self.check(RawBatch(x, context, 0, 0)), VALIDATION, number)
            size = len(tree_leaves(x)[0])
            if shared and self.processes.several:
                rows = rows_of(batch, size)
                batch, mine = cut(batch, rows, self.processes.world)[self.processes.rank]
                size *= mine / rows
            if size:
                with stream(self.device, self.options.seed, VALIDATION, number):
                    total += float(self.trained.loss(batch)) * size
                logged = {name: logged[name] + float(value) * size for name, value in self.metrics().items()}
            count += size
        total, count, *sums = self.processes.sums(total, count, *logged.values())
        means = {f"validation_{name}": each / count for name, each in zip(self.metric_names, sums)}
        return {"validation": total / count, **means}

    def save(self) -> None:
        """Writes a checkpoint of the last complete step, if the run has a folder."""
        self.look()
        if self.checkpoints is None:
            return
        self.processes.from_main(self.tracker.sync)
        note = {"settings": self.settings, "steps": self.options.steps, "epoch": self.epoch, "used": self.used}
        note["mark"] = self.mark
        note["best"] = None if self.best is None else [self.best.step, self.best.loss]
        records = records_of(self.flow).items()
        note["trained_by"] = {name: [dataclasses.asdict(entry) for entry in entries] for name, entries in records}
        note |= {"seconds": self.seconds, "pending": self.means()}
        write_flow = self.write_flow if self.options.save_model else lambda file: None
        self.checkpoints.save(self.step, note, self.state, write_flow)

    def write_flow(self, file: Path) -> None:
        """Writes the flow as it would be if the run ended here: with the best or the averaged weights."""
        left = self.average if self.best is None else self.best
        with nullcontext() if left is None else left.applied():
            whole = lambda value: value.full_tensor() if hasattr(value, "full_tensor") else value
            state = {name: whole(value) for name, value in self.flow.state_dict().items()}
            self.processes.from_main(lambda: write(self.flow, file, state))

    def restore(self, step: int, note: dict[str, Any]) -> None:
        """Restores a checkpoint."""
        self.checkpoints.load(step, self.state)
        self.step, self.epoch, self.used, self.seconds = step, note["epoch"], note["used"], note["seconds"]
        if self.best is not None:
            self.best.step, self.best.loss = note["best"]
        records = note["trained_by"].items()
        recall(self.flow, {name: tuple(TrainingEntry(**each) for each in entries) for name, entries in records})
        self.pending = [tuple(torch.tensor(step, device=self.device).float()) for step in note["pending"]]
        self.source.seek(step - step % self.options.pool, self.epoch, self.used)
        self.mark = self.source.mark
        if self.processes.is_main and self.mark != note["mark"]:
            warnings.warn(
                f"fit(resume=True): batch {self.used} of epoch {self.epoch} has changed since the run was interrupted; "
                f"use the same data, and a loader that draws from torch's default generator.",
                stacklevel=4,
            )


def _number(loss: Any) -> float:
    """Returns the result of a validation function as one number."""
    try:
        return float(loss)
    except (TypeError, ValueError):
        given = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise TypeError(
            f"fit(validation=function): the function returned {given}; return one number, the loss."
        ) from None
