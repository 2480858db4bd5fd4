"""What two processes do at once, with DDP and then with FSDP2; started by test_training_processes.py.

Every check that they can make alone is an assertion here; what is compared with a run on one process is written into
the folder given as argument.
"""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from training_standins import Regression, SmallMatching, Squares, data, small_flow

import cflow
from cflow import bases, bijections, couplings, fields, objectives, paths, solvers, times, training

STEPS, BATCH = 10, 24  # of the global batch
WAYS = ("ddp", "fsdp")


def build(objective):
    """A conditional flow in float64 with the path that an objective wants; the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        path = paths.BrownianBridge() if objective.startswith("Bridge") else paths.Linear()
        outputs, two = 2 if objective.startswith("Bridge") else 1, objective in ("MeanFlow", "Shortcut")
        field = fields.MLP(2, hidden=(8,), classes=3, outputs=outputs, two_times=two)
        flow = cflow.ContinuousFlow(
            field, bases.Normal(2), path=None if objective.startswith("Multi") else path, context_shape=()
        )
    if objective == "FFJORD":  # whose loss trains what is learned in a transform
        flow = flow.with_transform(bijections.Standardise(2, torch.full((2,), 1.5), learned=True))
    if objective == "MeanFlow":  # frozen parameters are sharded as well, and data go through them
        flow = flow.with_transform(bijections.Standardise(2, torch.full((2,), 1.5), learned=True).requires_grad_(False))
    return flow.double()


OBJECTIVES = {
    "FlowMatching": lambda: objectives.FlowMatching(
        couplings.OptimalTransport(), times.Stratified(), condition_dropout=0.3
    ),
    "FlowMatching, partial": lambda: objectives.FlowMatching(
        couplings.Partial(0.715)
    ),  # 17 of 24 rows: two unequal parts
    "BridgeMatching": lambda: objectives.BridgeMatching(couplings.OptimalTransport()),
    "MultiMarginal": lambda: objectives.MultiMarginal((0.0, 0.4, 1.0)),
    "MeanFlow": lambda: objectives.MeanFlow(share=0.5),
    "Shortcut": lambda: objectives.Shortcut(share=0.5, steps=8),
    "FFJORD": lambda: objectives.FFJORD(
        kinetic=0.01, jacobian=0.01, solver=solvers.RK4(2, gradient=solvers.Checkpointed()), steer=0.2
    ),
}


def rows(objective, count=100):
    generator = torch.Generator().manual_seed(3)
    members = (3,) if objective.startswith("Multi") else ()
    x = torch.randn(count, *members, 2, generator=generator, dtype=torch.float64) + 2
    return x, torch.randint(3, (count,), generator=generator)


class Gradients:
    """Notes the whole gradients that the optimizer is given at its first step."""

    def __enter__(self):
        self.step, self.seen = torch.optim.AdamW.step, []

        def spy(optimizer, *arguments, **options):
            if not self.seen:
                each = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
                assert all(hasattr(one, "full_tensor") for one in each) == sharded()
                self.seen = [(one.full_tensor() if sharded() else one).clone() for one in each]
            return self.step(optimizer, *arguments, **options)

        torch.optim.AdamW.step = spy
        return self

    def __exit__(self, *error):
        torch.optim.AdamW.step = self.step


def train(objective, processes, **options):
    """A run on the global batch, whatever the number of processes."""
    flow = build(objective)
    judged = tuple(each[:50] for each in rows(objective, 60))
    settings = {"batch_size": BATCH // processes, "steps": STEPS, "lr": 1e-2, "clip": 0.5, "ema": training.EMA(0.8)}
    settings |= {"log_every": 3, "across_processes": True, "validation": judged, "validate_every": 5}
    with Gradients() as gradients:
        run = training.fit(flow, OBJECTIVES[objective](), rows(objective), **(settings | options))
    return flow, run, gradients.seen


def result(flow, run, gradients):
    """What runs are compared by."""
    history = [{name: value for name, value in row.items() if name != "seconds"} for row in run.history]
    return {"weights": flow.state_dict(), "history": history, "gradients": gradients}


def raises(kind, part, call):
    with pytest.raises(kind) as told:
        call()
    assert part in str(told.value)


class Branches(Squares):
    """A head that one process alone uses, one that none uses, and a learned number."""

    def __init__(self, rank):
        super().__init__()
        self.rank = rank
        self.mine, self.nobodys = nn.Linear(3, 1, dtype=torch.float64), nn.Linear(3, 1, dtype=torch.float64)
        self.scale = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.frozen = nn.Parameter(torch.ones(3, dtype=torch.float64), requires_grad=False)

    def loss(self, flow, batch):
        losses = super().loss(flow, batch) * (self.scale.exp() * (1 + self.rank))
        return losses + self.mine(batch["context"]).square().sum(1) if self.rank == 1 else losses


class LearnedBase(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(2))

    def sample(self, shape, generator=None):
        return self.loc + torch.randn(*shape, 2, generator=generator)


class LearnsBase(SmallMatching):
    def loss(self, flow, batch):
        return super().loss(flow, batch) + (flow.base.loc - batch.x1).square().sum(1)


def same_everywhere(values):
    """Asserts that all processes hold equal tensors."""
    for value in values:
        theirs = [torch.empty_like(value) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(theirs, value.detach().contiguous())
        assert all(torch.equal(each, theirs[0]) for each in theirs)


def stops(folder, rank):
    """One process' reason to stop is everybody's, at the same step."""
    fixed = {"steps": 12, "batch_size": 8, "log_every": 4}

    def on_one(at, do):
        return [lambda step, flow, row: do() if (step, rank) == (at, 1) else None]

    fit = lambda **options: training.fit(small_flow(), SmallMatching(), data(), **(fixed | options))
    run = fit(callbacks=on_one(6, lambda: True))
    assert (run.steps, run.stopped, [row["step"] for row in run.history]) == (6, True, [4, 6])
    raises(
        KeyboardInterrupt,
        "after step 5; the checkpoint is",
        lambda: fit(out=folder / "sigterm", callbacks=on_one(5, lambda: os.kill(os.getpid(), signal.SIGTERM))),
    )
    assert (folder / "sigterm/checkpoints/step-000005/cflow.json").exists()

    def accident():
        raise ZeroDivisionError("by accident")

    kind, said = (ZeroDivisionError, "by accident") if rank == 1 else (RuntimeError, "process 1 of 2 failed")
    raises(kind, said, lambda: fit(callbacks=on_one(5, accident)))

    class Poisoned(SmallMatching):
        """Infinite losses with finite gradients: nothing but the word of the process tells the others."""

        def prepare(self, base, u, context, generator):
            batch = super().prepare(base, u, context, generator)
            return batch._replace(t=batch.t + 2) if bad(u) else batch

        def loss(self, flow, batch):
            losses = super().loss(flow, batch)
            return losses + torch.inf if bool((batch.t > 1).any()) else losses

    bad = lambda u: rank == 1
    flow = small_flow()
    before = [each.clone() for each in flow.parameters()]
    raises(FloatingPointError, "at step 0", lambda: training.fit(flow, Poisoned(), data(), **fixed, ema=None))
    assert all(torch.equal(one, other) for one, other in zip(before, flow.parameters(), strict=True))

    # Data that fail on one process only, in a worker.
    loader = torch.utils.data.DataLoader(data()[: 40 if rank == 0 else 20], batch_size=8, drop_last=rank == 0)
    few = torch.utils.data.DataLoader(data()[:5], batch_size=8, drop_last=True)
    kind, said = (ValueError, "gave no batch") if rank == 1 else (RuntimeError, "process 1 of 2 failed")
    raises(kind, said, lambda: training.fit(small_flow(), SmallMatching(), loader if rank == 0 else few, **fixed))
    assert training.fit(small_flow(), SmallMatching(), loader, **fixed).steps == 12

    raises(ValueError, "start at most 1 processes", lambda: fit_on(data()[:1], batch_size=1))
    raises(ValueError, "batch_size=20): batches are drawn", lambda: fit_on(data()[:30], batch_size=20))
    raises(ValueError, "choose batch_size <= 15", lambda: fit_on(data()[:30], batch_size=20, across_processes=True))
    raises(ValueError, "data=loader, across_processes=True", lambda: fit_on(loader, across_processes=True))


def fit_on(given, **options):
    return training.fit(small_flow(), SmallMatching(), given, **({"steps": 1, "batch_size": 8} | options))


def interrupted(folder, processes):
    """A run that stops in the middle of a pool, between its checkpoints."""

    def press(step, flow, row):
        if step == 7:
            raise KeyboardInterrupt

    raises(
        KeyboardInterrupt,
        "the checkpoint is",
        lambda: train("FlowMatching", processes, out=folder, pool=2, checkpoint_every=3, callbacks=[press]),
    )


def sharded():
    return os.environ.get("ACCELERATE_USE_FSDP") == "true"


def check(folder):
    """Trains in every way that differs between one process and several; gives what to compare."""
    results = {}
    for name in OBJECTIVES:
        seen = []
        ask = lambda step, flow, row, seen=seen: seen.append(flow.sample((2,), torch.zeros(2, dtype=torch.long)))
        flow = build(name)
        results[name] = result(*train(name, 2, callbacks=[] if "Match" not in name else [ask]))
        assert not seen or (len(seen) == STEPS and seen[0].shape == (2, 2, 2))
    for key, options in {"pool": {"pool": 3}, "accumulate": {"accumulate": 2}, "fetched": {"workers": 2}}.items():
        results[key] = result(*train("FlowMatching", 2, **options))
    rank = torch.distributed.get_rank()

    # Plain and whole again, the very same parameters; the history is everybody's.
    flow = build("FlowMatching")
    held = list(flow.parameters())
    options = {"steps": 3, "batch_size": 8, "log_every": 2, "out": folder / "whole"}
    run = training.fit(flow, OBJECTIVES["FlowMatching"](), rows("FlowMatching"), **options)
    again = cflow.load(options["out"] / "model")
    assert all(torch.equal(one, other) for one, other in zip(held, again.parameters(), strict=True))
    assert all(one is other for one, other in zip(held, flow.parameters(), strict=True))
    assert all(type(each) is nn.Parameter and each.grad is None for each in held)
    taken_up = build("FlowMatching")
    training.fit(taken_up, OBJECTIVES["FlowMatching"](), rows("FlowMatching"), resume=True, **options)
    assert all(torch.equal(one, other) for one, other in zip(held, taken_up.parameters(), strict=True))
    assert taken_up.trained_by == flow.trained_by == (OBJECTIVES["FlowMatching"]().entry(),)
    same_everywhere([*held, torch.tensor([list(row.values()) for row in run.history], dtype=torch.float64)])
    assert flow.sample((4,), torch.zeros((), dtype=torch.long)).isfinite().all()

    # Branches, numbers and frozen parameters.
    x, labels = rows("FlowMatching")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        objective = Branches(rank)
    start = {name: each.clone() for name, each in objective.named_parameters()}
    context = torch.nn.functional.one_hot(labels, 3).double()
    regression = Regression()
    training.fit(regression, objective, (x, context), steps=5, batch_size=20, lr=0.1, clip=None)
    moved = {name: not torch.equal(each, start[name]) for name, each in objective.named_parameters()}
    assert moved == {name: not name.startswith(("nobodys", "frozen")) for name in moved}, moved
    same_everywhere([*objective.parameters(), *regression.parameters()])

    # Running statistics and a learned base.
    flow = small_flow()
    training.fit(flow, SmallMatching(), data(), steps=4, batch_size=16, ema=training.EMA(0.5))
    same_everywhere(flow.state_dict().values())
    flow = small_flow()
    flow.base = LearnedBase()
    training.fit(flow, LearnsBase(), data(), steps=4, batch_size=16)
    assert (flow.base.loc.abs() > 1e-4).all()
    same_everywhere(flow.state_dict().values())

    # Resuming what one process wrote, and writing what one process will resume.
    for name in ("from one", "from ddp"):
        if (folder / name).exists():
            resumed = train("FlowMatching", 2, out=folder / name, resume=True, pool=2, checkpoint_every=3)
            assert resumed[1].resumed_from == 7
            results[name] = result(*resumed)
    for out in (folder / "to one", *([] if sharded() else [folder.with_name("fsdp") / "from ddp"])):
        interrupted(out, 2)
    raises(
        ValueError,
        "batch_size (of all processes) is 12 now and was 24",
        lambda: train("FlowMatching", 4, out=folder / "to one", resume=True, pool=2),
    )
    stops(folder, rank)
    if sharded():
        watch_deferred(rank)
    return results


def watch_deferred(rank):
    """The accelerator's way of skipping updates, with sharded parameters and one bad process."""
    from cflow.training.safety import Watch

    made = Watch.__init__
    Watch.__init__ = lambda self, optimizer, device, deferred: made(self, optimizer, device, True)
    flow = small_flow()

    class Late(SmallMatching):
        calls = 0

        def loss(self, flow, batch):
            self.calls += 1
            return super().loss(flow, batch) + (torch.inf if (self.calls, rank) == (4, 1) else 0.0)

    raises(
        FloatingPointError,
        "at step 3",
        lambda: training.fit(flow, Late(), data(), steps=9, batch_size=16, log_every=8, ema=None),
    )
    assert all(each.isfinite().all() for each in flow.parameters())
    same_everywhere(flow.parameters())
    Watch.__init__ = made


def pairs(folder):
    """Pairs of noise and sample, in nine files: one process makes five of them, or all."""
    return training.generate_pairs(build("FlowMatching"), 70, folder, solver=solvers.Heun(steps=3), seed=5, shard=8)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    with_both = pairs(place / "pairs")
    same_everywhere([with_both.x, with_both.context])
    found = {"ddp": check(place / "ddp")}
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    found["fsdp"] = check(place / "fsdp")
    if torch.distributed.get_rank() == 0:
        torch.save(found, place / "results.pt")
    torch.distributed.barrier()
    print("done", flush=True)
    # All is checked and written. A thread of the group that lets go of a Python object while the interpreter shuts down
    # aborts the process ("terminate called without an active exception"), rarely and under load: end without that.
    os._exit(0)
