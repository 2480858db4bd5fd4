"""The trained module: one loss, replicated (DDP) or sharded (FSDP2) over processes, and plain again afterwards."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from cflow.training.ema import local
from cflow.training.processes import Processes

__all__ = ["MeanLoss", "Trained", "wants_sharding"]


class MeanLoss(nn.Module):
    """Flow and objective as one module whose forward returns the mean loss; this module is trained and sharded.

    With ``everywhere`` all trainable parameters are in the graph, also those that the loss did not use, so that all
    processes exchange the same gradients even if they take different branches.
    """

    def __init__(self, flow: nn.Module, objective: Any, bf16: bool) -> None:
        super().__init__()
        self.flow, self.objective, self.bf16 = flow, objective, bf16
        self.everywhere: str | None = None

    def forward(self, batch: Any) -> Tensor:
        device = next(self.parameters()).device
        with torch.autocast(device.type, torch.bfloat16) if self.bf16 else nullcontext():
            losses = self.objective.loss(self.flow, batch)
        if losses.dim() != 1:
            raise ValueError(
                f"{type(self.objective).__name__}.loss returned shape {tuple(losses.shape)}, not one loss for each "
                f"item; return shape [B]."
            )
        loss = losses.float().mean() if losses.dtype in (torch.float16, torch.bfloat16) else losses.mean()
        if self.everywhere and torch.is_grad_enabled():
            trained = [each for each in self.parameters() if each.requires_grad]
            loss = _Everywhere.apply(loss, self.everywhere == "zeros", *trained)
        return loss


class _Everywhere(torch.autograd.Function):
    """Returns a loss unchanged, but makes it depend on every parameter for autograd, with a gradient of zero.

    DDP treats "no gradient" as zero. FSDP2 omits parameters without a gradient from its exchange, so it gets zeros.
    """

    @staticmethod
    def forward(ctx, loss, zeros, *parameters):
        ctx.zeros = zeros
        ctx.like = [(each.shape, each.dtype, each.device) for each in parameters]
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        if not ctx.zeros:
            return gradient, None, *[None] * len(ctx.like)
        zero = lambda shape, dtype, device: torch.zeros((), dtype=dtype, device=device).expand(shape)
        return gradient, None, *[zero(*like) for like in ctx.like]


class Trained:
    """The module of a run, distributed over its processes.

    With one process it is the plain module. With several accelerate wraps it with DDP. Under ``accelerate launch
    --use_fsdp --fsdp_version 2`` it is ``fully_shard`` on the whole module as one group. Parameters are then gathered
    once per forward pass and kept until the gradient is computed, so the number of function evaluations (NFE) may
    differ between processes (solves). Between steps, weights, gradients, optimizer and average are sharded. Parameters
    without dimensions cannot be sharded, so every process has them.

    FSDP2 has been run on the CPU (gloo), not on GPUs yet.
    """

    def __init__(self, loss: MeanLoss, accelerator: Any, processes: Processes) -> None:
        self.loss, self.accelerator, self.processes = loss, accelerator, processes
        self.module: nn.Module = loss
        self.sharded = self._checked = False
        self._whole: list[tuple[nn.Module, str, nn.Parameter]] = []
        places = (
            {}
            if not processes.several
            else {
                id(each): (part, name)
                for part in loss.modules()
                for name, each in part._buffers.items()
                if each is not None and name not in part._non_persistent_buffers_set
            }
        )
        self._buffers = list(places.values())
        self._seen: list[tuple[Tensor | None, int]] = [(None, 0)] * len(self._buffers)

    def shard(self, device: torch.device) -> None:
        """Shards the parameters of the main process over all processes."""
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        for each in (*self.loss.parameters(), *self.loss.buffers()):
            dist.broadcast(each.detach(), 0)
        self._whole = [
            (part, name, each)
            for part in self.loss.modules()
            for name, each in part._parameters.items()
            if each is not None and each.dim() > 0
        ]
        alone = {each for each in self.loss.parameters() if each.dim() == 0}
        mesh = init_device_mesh(device.type, (self.processes.world,))
        self.module = fully_shard(self.loss, mesh=mesh, ignored_params=alone)
        with torch.no_grad():  # the whole parameters stay the same objects, without their memory
            for _, _, whole in self._whole:
                whole.data = whole.data.new_empty(0)
        self.loss.everywhere, self.sharded = "zeros", True
        self.share_buffers()

    def prepare(self, optimizer: torch.optim.Optimizer, placed: bool) -> torch.optim.Optimizer:
        """Wraps the module for one process or DDP; with ``placed`` it stays on its device."""
        if self.processes.several:
            # Buffers are shared after each step here; DDP would do it before the next, too late for their average.
            names = [name for name, _ in self.loss.named_buffers(remove_duplicate=False)]
            nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.loss, names)
            self.loss.everywhere = "none"
        self.module, optimizer = self.accelerator.prepare(
            self.loss, optimizer, device_placement=[not placed, not placed]
        )
        self.share_buffers()
        # The wrappers of step and backward are for loss scaling of fp16, not supported here; they cost 0.5 ms.
        return optimizer.optimizer

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Gives every process the whole parameters in this context, so the flow works like a plain module."""
        if not self.sharded:
            yield
            return
        self.module.reshard()  # parameters gathered by a forward pass may be old
        self.module.unshard()
        try:
            yield
        finally:
            self.module.reshard()

    def backward(self, loss: Tensor, last: bool) -> None:
        """Computes gradients; with ``last`` those of all pieces are averaged over the processes."""
        first = self.loss.everywhere == "none" and not self._checked
        with warnings.catch_warnings() if first else nullcontext():
            if first:  # DDP warns once about strides of 1x1 convolutions, which cost a copy of a few kilobytes
                warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            loss.backward()
        self._checked = self._checked or last
        if not (last and self.sharded):
            return
        import torch.distributed as dist

        for each in self.loss.parameters():
            if each.dim() == 0 and each.grad is not None:
                dist.all_reduce(each.grad)
                each.grad /= self.processes.world

    @contextmanager
    def piece(self, last: bool) -> Iterator[None]:
        """The context of forward and backward of one piece; gradients are exchanged with the last."""
        if self.sharded:
            self.module.set_requires_gradient_sync(last)
            self.module.set_reshard_after_backward(last)
            yield
        else:
            with nullcontext() if last else self.accelerator.no_sync(self.module):
                yield

    def clip(self, parameters: list[Tensor], largest: float) -> Tensor:
        """Clips gradients to a norm and returns the norm before, the same on all processes."""
        if not self.sharded:
            return torch.nn.utils.clip_grad_norm_(parameters, largest)
        import torch.distributed as dist

        gradients = [each.grad for each in parameters if each.grad is not None]
        shards = [local(each) for each in gradients if hasattr(each, "to_local")]
        wholes = [each for each in gradients if not hasattr(each, "to_local")]
        square = torch.nn.utils.get_total_norm(shards).square()
        dist.all_reduce(square)
        norm = (square + torch.nn.utils.get_total_norm(wholes).square() if wholes else square).sqrt()
        torch._foreach_mul_([*shards, *wholes], (largest / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def share_buffers(self) -> None:
        """Copies buffers that have changed (running statistics) from the main process to all processes."""
        if not self._buffers:
            return
        import torch.distributed as dist

        buffers = [part._buffers[name] for part, name in self._buffers]
        # Batch norm changes its statistics without a new version number.
        norm = nn.modules.batchnorm._NormBase
        changed = self.processes.maxima(
            *(
                int(seen is not each or version != each._version or isinstance(part, norm))
                for each, (part, _), (seen, version) in zip(buffers, self._buffers, self._seen)
            )
        )
        for each in itertools.compress(buffers, changed):
            dist.broadcast(each.detach(), 0)
        self._seen = [(each, each._version) for each in buffers]

    @torch.no_grad()
    def make_plain(self) -> None:
        """Restores the whole parameters of the flow, in the same objects as before."""
        if not self.sharded:
            return
        self.module.reshard()
        full = {id(each): each for each in (part._parameters[name] for part, name, _ in self._whole)}
        full = {key: each.full_tensor() for key, each in full.items()}
        for part, name, whole in self._whole:
            whole.data = full[id(part._parameters[name])]
            part._parameters[name] = whole
        self.sharded = False


def wants_sharding(accelerator: Any) -> bool:
    """Returns whether the launcher requested FSDP; raises for options of it that are not supported.

    On the CPU accelerate uses DDP instead; here FSDP works on the CPU too.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true" or accelerator.num_processes == 1:
        return False
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        from accelerate import FullyShardedDataParallelPlugin

        plugin = FullyShardedDataParallelPlugin()
    offloads = bool(plugin.cpu_offload) and type(plugin.cpu_offload).__name__ != "OffloadPolicy"
    wraps = (
        os.environ.get("FSDP_AUTO_WRAP_POLICY", "NO_WRAP").upper() != "NO_WRAP" or plugin.auto_wrap_policy is not None
    )
    for asked, option, instead in (
        (plugin.fsdp_version != 2, f"--fsdp_version {plugin.fsdp_version}", "pass --fsdp_version 2"),
        (offloads, "--fsdp_offload_params true", "omit it"),
        (bool(plugin.activation_checkpointing), "--fsdp_activation_checkpointing true", "omit it"),
        (wraps, "--fsdp_auto_wrap_policy", "pass NO_WRAP (fit shards flow and objective as one group)"),
    ):
        if asked:
            raise ValueError(f"fit: accelerate was launched with {option}, which is not supported; {instead}.")
    return True
