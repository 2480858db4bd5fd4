"""The training loop: one optimizer step after the other, watched, averaged, recorded and checkpointed."""

from __future__ import annotations

import dataclasses
import math
import time
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from cflow.training.batches import RawBatch, ahead
from cflow.training.checks import check_batch
from cflow.training.safety import Interrupt, Watch
from cflow.training.streams import FORWARD, PREPARE, VALIDATION, generator_for, stream

__all__ = ["Loop", "MeanLoss", "pieces"]


class MeanLoss(nn.Module):
    """Flow and objective as one module whose forward is the mean loss: what is trained, wrapped and sharded."""

    def __init__(self, flow: nn.Module, objective: Any, bf16: bool) -> None:
        super().__init__()
        self.flow, self.objective, self.bf16 = flow, objective, bf16

    def forward(self, batch: Any) -> Tensor:
        device = next(self.parameters()).device
        with torch.autocast(device.type, torch.bfloat16) if self.bf16 else nullcontext():
            losses = self.objective.loss(self.flow, batch)
        if losses.dim() != 1:
            raise ValueError(
                f"{type(self.objective).__name__}.loss gave shape {tuple(losses.shape)}: fit weighs items alike "
                f"and needs one loss for each; return shape [B]."
            )
        return losses.float().mean() if losses.dtype in (torch.float16, torch.bfloat16) else losses.mean()


def pieces(batch: Any, size: int, count: int) -> list[tuple[Any, float]]:
    """Cuts a prepared batch into pieces, each with its share of the items.

    Tensors whose first dimension is the batch's are cut; others go to every piece as they are.
    """
    if count == 1:
        return [(batch, 1.0)]
    cuts = torch.arange(size).tensor_split(min(count, size))
    cut = [(int(rows[0]), int(rows[-1]) + 1) for rows in cuts]
    return [(_slice(batch, size, start, stop), (stop - start) / size) for start, stop in cut]


def _slice(batch: Any, size: int, start: int, stop: int) -> Any:
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        parts = {
            field.name: _slice(getattr(batch, field.name), size, start, stop) for field in dataclasses.fields(batch)
        }
        return dataclasses.replace(batch, **parts)
    if isinstance(batch, dict):
        return {name: _slice(part, size, start, stop) for name, part in batch.items()}
    if isinstance(batch, tuple | list):
        parts = [_slice(part, size, start, stop) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch[start:stop] if isinstance(batch, Tensor) and batch.dim() > 0 and len(batch) == size else batch


@dataclasses.dataclass
class Loop:
    """One run's moving parts. ``run`` goes through the steps; the rest is called from there."""

    flow: Any
    objective: Any
    module: Any  # MeanLoss as accelerate wrapped it
    optimizer: torch.optim.Optimizer
    accelerator: Any
    average: Any
    source: Any
    validation: Any
    tracker: Any
    checkpoints: Any
    options: Any  # the arguments of fit, by name
    settings: dict[str, Any]
    step: int = 0
    epoch: int = 0
    used: int = 0
    seconds: float = 0.0
    whole: bool = True  # False while weights and average are being updated

    def __post_init__(self) -> None:
        self.parameters = [each for each in self.module.parameters() if each.requires_grad]
        self.device = self.parameters[0].device
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        deferred = self.device.type != "cpu" and bool(self.optimizer.defaults.get("fused"))
        self.watch = Watch(self.optimizer, self.device, deferred)
        self.pending: list[tuple[Tensor, Tensor]] = []
        self.interrupt = Interrupt()
        base = getattr(self.flow, "base", None)
        inward = [base, getattr(self.flow, "transform", None)]
        learned = any(each.requires_grad for part in inward if part is not None for each in part.parameters())
        # A learned base changes with every step, and an accelerator may be recording a graph: then nothing runs ahead.
        self.depth = 0 if learned or self.device.type != "cpu" else self.options.prefetch

    def prepare(self, raw: RawBatch, *counters: int) -> Any:
        """Carries a raw batch to what the objective's loss takes; all draws come from the stream of ``counters``."""
        check_batch(self.flow, self.objective, raw.x, raw.context, "data")
        generator = generator_for(self.device, self.options.seed, *counters)
        x, context = self.flow.cast(raw.x), self.flow.cast(raw.context)
        with torch.no_grad():
            u = self.objective.preprocess(self.flow, x, generator)
            return self.objective.prepare(getattr(self.flow, "base", None), u, context, generator)

    def run(self, steps: int, bar: Any) -> bool:
        """Trains up to ``steps``; tells whether a callback ended the run before."""
        options, begun = self.options, time.perf_counter() - self.seconds
        if self.step == steps:
            # Objectives note on the flow what it was trained with: a finished run taken up again must know it too.
            self.flow.eval()
            with torch.no_grad(), stream(self.device, options.seed, FORWARD, self.step):
                self.module(self.prepare(self.source.fetch(), PREPARE, self.step))
            return False
        rank = self.accelerator.process_index
        prepare = lambda at, raw: self.prepare(raw, PREPARE, at, rank)
        batches = ahead(self.source.fetch, prepare, self.step, steps, self.depth)
        stopped = False
        try:
            for raw, batch in batches:
                self.update(raw, batch, steps)
                self.step, self.epoch, self.used = self.step + 1, raw.epoch, raw.used
                self.seconds = time.perf_counter() - begun
                # All callbacks are called, whichever of them wants to stop.
                answers = [callback(self.step, self.flow) for callback in options.callbacks]
                stopped = any(answer is True for answer in answers)
                last = stopped or self.step == steps
                validates = self.validation is not None and (self.step % options.validate_every == 0 or last)
                if self.step % options.log_every == 0 or validates or last:
                    self.record(validates, bar)
                    self.seconds = time.perf_counter() - begun
                if bar is not None:
                    bar.update()
                if self.step % options.checkpoint_every == 0 or last:
                    self.save()
                if stopped:
                    break
                if self.interrupt.name is not None:
                    raise KeyboardInterrupt
        finally:
            batches.close()
        return stopped

    def update(self, raw: RawBatch, batch: Any, steps: int) -> None:
        """Makes one optimizer step; raises before it where the loss or a gradient is not finite."""
        options, total = self.options, None
        self.optimizer.zero_grad(set_to_none=True)
        parts = pieces(batch, len(tree_leaves(raw.x)[0]), options.accumulate)
        with stream(self.device, options.seed, FORWARD, self.step, self.accelerator.process_index):
            for number, (part, share) in enumerate(parts):
                syncs = nullcontext() if number == len(parts) - 1 else self.accelerator.no_sync(self.module)
                with syncs:
                    loss = self.module(part) * share
                    loss.backward()
                total = loss.detach() if total is None else total + loss.detach()
        norm = self.accelerator.clip_grad_norm_(self.parameters, options.clip or float("inf"))
        if not self.watch.allows(self.step, total, norm):
            self.fail(self.step, f"the loss is {float(total)} and the gradient norm {float(norm)}")
        factor = options.schedule(self.step, steps)
        for group, rate in zip(self.optimizer.param_groups, self.rates):
            group["lr"] = rate * factor
        self.whole = False
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        self.whole = True
        self.pending.append((total, norm))

    def fail(self, step: int, what: str) -> None:
        """Raises for a loss or gradient that is not finite; the weights are those before the step."""
        self.optimizer.zero_grad(set_to_none=True)
        rows = self.source.rows(step)
        batch = "" if rows is None else f" (batch of rows {rows[:8].tolist()}{'...' if len(rows) > 8 else ''})"
        saved = self.checkpoints.steps() if self.checkpoints is not None else []
        kept = f"the last checkpoint is {self.checkpoints.path(saved[-1])}" if saved else "no checkpoint was written"
        raise FloatingPointError(
            f"fit: at step {step}{batch} {what}; the weights are left as they were before it, and {kept}. "
            f"Lower lr, clip gradients or look at these rows."
        )

    def check(self) -> None:
        """Raises for a bad step that only the accelerator knows of yet."""
        step = self.watch.failed_at()
        if step is not None:
            self.fail(step, "the loss or a gradient is not finite")

    def means(self) -> list[list[float]]:
        """Reads the losses and gradient norms since the last row."""
        if not self.pending:
            return []
        read = torch.stack([torch.stack([each.float() for each in pair]) for pair in self.pending])
        return self.accelerator.reduce(read, "mean").double().tolist()

    def record(self, validates: bool, bar: Any) -> None:
        """Adds a row to the history: means since the last row."""
        self.check()
        read = torch.tensor(self.means(), dtype=torch.float64)
        loss, norm = read.mean(0).tolist()
        self.pending.clear()
        row = {"step": self.step, "loss": loss, "grad_norm": norm}
        row |= {"lr": self.optimizer.param_groups[0]["lr"], "seconds": self.seconds}
        if validates:
            row["validation"] = self.validate()
        self.tracker.add(row)
        if bar is not None:
            bar.set_postfix({name: f"{row[name]:.4g}" for name in ("loss", "validation") if name in row}, refresh=False)

    def validate(self) -> float:
        """Computes the mean loss on the validation data with averaged weights, always with the same draws."""
        total = count = 0.0
        modes = [(part, part.training) for part in self.flow.modules()]
        self.flow.eval()
        with self.average.applied() if self.average is not None else nullcontext(), torch.no_grad():
            for number, (x, context) in enumerate(self.validation.once()):
                batch = self.prepare(RawBatch(x, context, 0, 0), VALIDATION, number)
                size = len(tree_leaves(x)[0])
                with stream(self.device, self.options.seed, VALIDATION, number):
                    total += float(self.accelerator.unwrap_model(self.module)(batch)) * size
                count += size
        for part, mode in modes:
            part.training = mode
        if not math.isfinite(total):
            raise FloatingPointError(
                f"fit: the validation loss at step {self.step} is {total / count}: either the weights have "
                f"run away (lower lr), or the validation data hold NaN."
            )
        return total / count

    def save(self) -> None:
        """Writes a checkpoint of the last complete step, where the run writes at all."""
        self.check()
        if self.checkpoints is None:
            return
        self.tracker.sync()
        note = {"settings": self.settings, "steps": self.options.steps, "epoch": self.epoch, "used": self.used}
        self.checkpoints.save(self.step, {**note, "seconds": self.seconds, "pending": self.means()})

    def restore(self, step: int, note: dict[str, Any]) -> None:
        """Goes back to a checkpoint."""
        self.checkpoints.load(step)
        self.step, self.epoch, self.used, self.seconds = step, note["epoch"], note["used"], note["seconds"]
        self.pending = [tuple(torch.tensor(pair, device=self.device).float()) for pair in note["pending"]]
        self.source.seek(step, self.epoch, self.used)
