"""What only a GPU can answer, part by part: each gives plain values, and runs on a CPU in small for its logic."""

import statistics
import time
import warnings

import torch

import cflow
from cflow import bases, discrete, fields, objectives, paths, solvers, training
from cflow.discrete import RationalQuadratic
from cflow.discrete.univariate.spline_kernel import fused


def clock(call, device):
    """Gives the milliseconds of a call, to the end of its work on the device."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    begun = time.perf_counter()
    call()
    wait()
    return (time.perf_counter() - begun) * 1e3


def alternate(calls, device, rounds):
    """Times calls in turn: medians in ms, and of each the median of its ratios to the first, with quartiles."""
    found = {name: [] for name in calls}
    for number in range(rounds + 2):
        for name in list(calls)[:: 1 if number % 2 else -1]:  # each goes first in turn
            spent = clock(calls[name], device)
            if number >= 2:
                found[name].append(spent)
    first = found[next(iter(calls))]
    result = {}
    for name, spent in found.items():
        result[f"{name}, ms"] = statistics.median(spent)
        if spent is not first:
            ratios = sorted(one / other for one, other in zip(first, spent))
            low, middle, high = (ratios[round(q * (len(ratios) - 1))] for q in (0.25, 0.5, 0.75))
            result[f"{name}, times faster"] = [low, middle, high]
    return result


def networks(small, device):
    """Flows by name, each with the batch it is asked with."""
    torch.manual_seed(0)
    if small:
        mlp = fields.MLP(2, hidden=(8,))
        flows = {"MLP, batch 8": (mlp, 2, 8)}
    else:
        mlp = lambda: fields.MLP(2, hidden=(64, 64, 64))
        flows = {
            "MLP, batch 64": (mlp(), 2, 64),
            "MLP, batch 4096": (mlp(), 2, 4096),
            "U-Net 32x32, batch 16": (fields.UNet(3, 32, width=64), (3, 32, 32), 16),
            "DiT 32x32, batch 16": (fields.DiT(3, 32, patch=4, width=256, depth=6, heads=4), (3, 32, 32), 16),
        }
    return {
        name: (cflow.ContinuousFlow(stir(net), bases.Normal(shape), path=paths.Linear()).to(device), batch)
        for name, (net, shape, batch) in flows.items()
    }


def stir(module):
    """Gives zero layers small weights, so that the velocity is one."""
    with torch.no_grad():
        for each in module.parameters():
            if not each.any():
                each.normal_(std=0.02)
    return module


def graphs(device, small, capture=solvers.CudaGraph):
    """CudaGraph beside the eager loop: is the result the same, and how much faster is it?"""
    methods = [solvers.Euler(4), solvers.Dopri5(1e-3, 1e-3)] if small else [
        solvers.Euler(32), solvers.Heun(16), solvers.Dopri5(1e-4, 1e-4), solvers.Dopri5(1e-4, 1e-4, per_sample=False)
    ]  # fmt: skip
    found = {}
    for name, (flow, batch) in networks(small, device).items():
        x = flow.base.sample((batch,), generator=torch.Generator(device).manual_seed(0))
        for method in methods:
            captured = capture(method)
            solve = lambda solver, flow=flow, x=x: flow.transport(x, 0.0, 1.0, solver=solver).y
            with torch.no_grad():
                gap = float((solve(method) - solve(captured)).abs().max())
                calls = {"eager": lambda s=method: solve(s), "graph": lambda s=captured: solve(s)}
                times = alternate(calls, device, 3 if small else 9)
            found[f"{name}, {method!r}"] = {"largest difference": gap, **times}
    return found


def spline(device, small):
    """The Triton spline beside the eager one: error against float64, and time, both ways and backward."""
    found = {}
    generator = torch.Generator().manual_seed(0)
    for rows in (7,) if small else (1024, 65_536):
        family = RationalQuadratic(bins=8)
        value = 3 * torch.randn(rows, 16, generator=generator)
        raw = torch.randn(rows, 16, family.size, generator=generator)
        weights = torch.randn(2, rows, 16, generator=generator)
        on = [each.to(device).requires_grad_() for each in (value, raw)]
        exact = [each.detach().double().requires_grad_() for each in on]
        weights = weights.to(device)
        for inverse in (False, True):
            ways = {
                "eager": lambda at, inverse=inverse: (family.decode if inverse else family.encode)(*at),
                "triton": lambda at, inverse=inverse: fused(family, *at, inverse=inverse),
            }
            backward = lambda way, at: torch.autograd.grad((weights * torch.stack(tuple(way(at)))).sum(), at)
            wanted = (*ways["eager"](exact), *backward(ways["eager"], exact))
            row = {}
            for name, way in ways.items():
                given = (*way(on), *backward(way, on))
                errors = [distance(a.detach(), b.detach()) for a, b in zip(given, wanted)]
                row[f"{name}, error of value, log-slope, gradients"] = errors
            with torch.no_grad():
                row["alone"] = alternate({n: lambda w=w: w(on) for n, w in ways.items()}, device, 3 if small else 15)
            row["with backward"] = alternate(
                {n: lambda w=w: backward(w, on) for n, w in ways.items()}, device, 3 if small else 15
            )
            found[f"{rows} x 16, {'inverse' if inverse else 'forward'}"] = row
    return found


def distance(given, wanted):
    """Gives the largest error, over one plus the largest value."""
    return float((given - wanted).abs().max() / (1 + wanted.abs().max()))


def precision(device, small):
    """Autocast to bf16: is the loss near that of float32, the density float32, and how much faster is a step?"""
    found = {}
    for name, (flow, batch) in networks(small, device).items():
        x = flow.base.sample((batch,))
        objective = objectives.FlowMatching()

        def step(half, flow=flow, x=x, objective=objective):
            flow.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=half):
                draws = torch.Generator(device).manual_seed(0)
                loss = objective(flow, x, generator=draws).float().mean()
            loss.backward()
            return loss.detach()

        whole, half = float(step(False)), float(step(True))
        finite = all(bool(each.grad.isfinite().all()) for each in flow.parameters() if each.grad is not None)
        calls = {"float32": lambda: step(False), "bf16": lambda: step(True)}
        found[name] = {
            "loss, float32": whole, "loss, bf16": half, "gradients finite": finite,
            **alternate(calls, device, 3 if small else 9),
        }  # fmt: skip
    flow = discrete.nsf(4, layers=1, hidden=(8,)) if small else discrete.nsf(16, layers=5, hidden=(256, 256))
    flow, x = flow.to(device), torch.randn(16 if small else 4096, flow.event_shape[0], device=device)
    with torch.no_grad():
        exact = flow.log_prob(x)
        with torch.autocast(device, torch.bfloat16):
            rough = flow.log_prob(x)
            calls = {"bf16": lambda: flow.log_prob(x)}
            spent = alternate(calls, device, 3 if small else 9)
    found["nsf, log_prob"] = {
        "dtype under autocast": str(rough.dtype), "largest difference, nats": float((exact - rough).abs().max()),
        "float32, ms": alternate({"float32": lambda: flow.log_prob(x)}, device, 3 if small else 9)["float32, ms"],
        **spent,
    }  # fmt: skip
    return found


def waits(call, device):
    """Counts the times that a call makes the host wait for the device."""
    if device != "cuda":
        call()
        return 0
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in seen)


def syncs(device, small):
    """Host synchronisations of samplers, densities and training steps."""
    steps = 3 if small else 32
    flow = next(iter(networks(small, device).values()))[0]
    spline = discrete.nsf(4, layers=1, hidden=(8,)).to(device)
    x, y = torch.randn(64, 2, device=device), torch.randn(64, 4, device=device)
    objective, optimizer = objectives.FlowMatching(), torch.optim.AdamW(flow.parameters(), foreach=True)

    def train():
        for _ in range(steps):
            optimizer.zero_grad()
            objective(flow, x).mean().backward()
            optimizer.step()

    fitted = lambda: training.fit(flow, objectives.FlowMatching(), x, steps=steps, batch_size=16, log_every=steps)
    calls = {
        f"sample by Euler({steps})": lambda: flow.sample((64,), solver=solvers.Euler(steps)),
        f"sample by Heun({steps})": lambda: flow.sample((64,), solver=solvers.Heun(steps)),
        "sample by Dopri5": lambda: flow.sample((64,), solver=solvers.Dopri5(1e-4, 1e-4)),
        "sample by Dopri5, one step for all": lambda: flow.sample((64,), solver=solvers.Dopri5(per_sample=False)),
        f"log_prob by RK4({steps})": lambda: flow.log_prob(x, solver=solvers.RK4(steps)),
        "nsf, log_prob": lambda: spline.log_prob(y),
        "nsf, sample": lambda: spline.sample((64,)),
        f"{steps} steps of flow matching by hand": train,
        f"fit of {steps} steps": fitted,
    }
    found = {}
    for name, call in calls.items():
        with torch.set_grad_enabled("steps of" in name or name.startswith("fit")):
            call()
            found[name] = {"host waits": waits(call, device)}
    return found


def fsdp(device, small):
    """FSDP2 on one device: the weights after some steps beside those without it."""
    import os

    import torch.distributed as dist
    from accelerate import Accelerator

    from cflow.training.processes import Processes
    from cflow.training.sharding import MeanLoss, Trained

    local = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": os.environ.get("MASTER_PORT", "29511")}
    os.environ |= local | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    steps, ends = 3 if small else 20, {}
    try:
        for way in ("alone", "fsdp"):
            flow = next(iter(networks(small, device).values()))[0]
            loss = MeanLoss(flow, objectives.FlowMatching(), bf16=False)
            accelerator = Accelerator(cpu=device == "cpu")
            trained = Trained(loss, accelerator, Processes(accelerator, True))
            if way == "fsdp":
                trained.shard(torch.device(device))
            optimizer = torch.optim.AdamW(trained.module.parameters(), lr=1e-3)
            draws, x = torch.Generator(device).manual_seed(0), torch.linspace(-1, 1, 64, device=device).reshape(32, 2)
            for _ in range(steps):
                optimizer.zero_grad()
                trained.module(loss.objective.make_batch(flow, x, None, draws)).backward()
                optimizer.step()
            whole = lambda each: each.full_tensor() if hasattr(each, "full_tensor") else each
            ends[way] = [whole(each.detach()).float().cpu() for each in trained.module.parameters()]
    finally:
        dist.destroy_process_group()
    gap = max(float((a - b).abs().max()) for a, b in zip(ends["alone"], ends["fsdp"]))
    return {f"MLP, {steps} steps": {"largest difference of a weight": gap}}


def memory(device, small):
    """Peak memory, MiB: gradients through a solve, and reversible layers beside plain ones."""
    batch, steps = (8, 4) if small else (4096, 64)
    flow = next(iter(networks(small, device).values()))[0]
    x = torch.randn(batch, 2, device=device)
    half = lambda: discrete.Coupling(RationalQuadratic(bins=8), 2, hidden=(8,) if small else (64, 64))
    layers = [half() for _ in range(2 if small else 16)]
    plain, reversible = (
        discrete.NormalizingFlow(kind(*layers), bases.Normal(2)).to(device)
        for kind in (discrete.Compose, discrete.Reversible)
    )
    solve = lambda mode: flow.log_prob(x, solver=solvers.RK4(steps, gradient=mode)).sum().backward()
    calls = {
        f"log_prob by RK4({steps}), Backprop": lambda: solve(solvers.Backprop()),
        f"log_prob by RK4({steps}), Checkpointed": lambda: solve(solvers.Checkpointed()),
        "couplings, Compose": lambda: plain.log_prob(x).sum().backward(),
        "couplings, Reversible": lambda: reversible.log_prob(x).sum().backward(),
    }
    return {name: {"peak, MiB": peak(call, device)} for name, call in calls.items()}


def peak(call, device):
    """Gives the most memory that a call holds beside what was there, in MiB; None where it cannot be read."""
    call()
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


PARTS = {"graphs": graphs, "spline": spline, "precision": precision, "syncs": syncs, "fsdp": fsdp, "memory": memory}
"""The parts, the most telling first."""
