"""Training on the flow's own draws: without data, or with contexts alone. Also run as a script, by two processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from training_standins import SmallMatching, small_flow

from cflow import discrete, training
from cflow.objectives.variational.importance_weighted import DoublyReparameterised
from cflow.objectives.variational.reverse_kl import PathDerivative, ReverseKL

F64 = torch.float64


def normal(x, context=None):
    """A Gaussian about the context, or about one."""
    return -2 * (x - (1.0 if context is None else context)).square().sum(1)


def build(context=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return discrete.maf(2, context=context, layers=2, hidden=(8,)).double()


def fit(objective=None, flow=None, data=None, **options):
    flow = build() if flow is None else flow
    settings = {"steps": 6, "batch_size": 16, "lr": 1e-2, "seed": 1, "log_every": 2} | options
    run = training.fit(flow, objective or ReverseKL(normal), data, **settings)
    return flow, run


def weights(flow):
    return torch.cat([each.flatten() for each in flow.state_dict().values() if each.is_floating_point()])


def contexts(count=40):
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(2), dtype=F64)


def test_a_seed_says_everything_and_torch_is_left_alone():
    before = torch.get_rng_state()
    (one, first), (two, second), (other, _) = fit(), fit(), fit(seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(weights(one), weights(two))
    assert not torch.equal(weights(one), weights(other))
    assert [row["loss"] for row in first.history] == [row["loss"] for row in second.history]
    assert [row["step"] for row in first.history] == [2, 4, 6]
    assert not torch.equal(weights(one), weights(build()))


@pytest.mark.parametrize("given", [None, "contexts"])
def test_a_resumed_run_ends_with_the_same_weights(given, tmp_path):
    make = lambda: (build(), None) if given is None else (build(2), contexts())
    ends = []
    for name, parts in (("whole", [7]), ("parts", [3, 7]), ("parts", [7])):
        for steps in parts:
            flow, data = make()
            resume = steps > parts[0] or name != "whole"
            _, run = fit(
                PathDerivative(normal, samples=2), flow, data, steps=steps, out=tmp_path / name, resume=resume,
                schedule=training.Constant(), checkpoint_every=2,
            )  # fmt: skip
        ends.append(weights(flow))
    assert run.resumed_from == 7  # the last one was finished before
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])
    flow, data = make()
    with pytest.raises(ValueError, match="batch_size is 8 now and was 16"):
        fit(PathDerivative(normal, samples=2), flow, data, out=tmp_path / "whole", resume=True, batch_size=8, steps=7)


def test_pieces_of_a_batch_make_its_step():
    whole, pieces = (weights(fit(PathDerivative(normal), accumulate=count)[0]) for count in (1, 3))
    torch.testing.assert_close(whole, pieces, rtol=1e-9, atol=1e-12)
    pooled, _ = fit(PathDerivative(normal), pool=2)
    assert not torch.equal(weights(pooled), whole)  # other draws


def test_draws_are_new_at_every_step():
    seen = []

    class Watched(ReverseKL):
        def loss(self, flow, batch):
            seen.append(batch.z)
            return super().loss(flow, batch)

    fit(Watched(normal, samples=3))
    assert all(each.shape == (16, 3, 2) for each in seen)
    assert len(torch.unique(torch.cat(seen).flatten())) == 6 * 16 * 3 * 2


@pytest.mark.parametrize(
    "kind",
    [lambda c: c, lambda c: (c,), TensorDataset, lambda c: DataLoader(c, 8), lambda c: DataLoader(TensorDataset(c), 8)],
)
def test_contexts_are_the_data_of_a_conditional_flow(kind):
    given = []

    def target(x, context):
        given.append(context)
        return normal(x, context)

    whole = contexts(40)
    _, run = fit(ReverseKL(target), build(2), kind(whole), steps=5, batch_size=8, validation=kind(whole[:20]))
    seen = torch.cat(given[:5])
    assert torch.equal(seen.sort(0).values, whole.sort(0).values)  # an epoch: each once
    assert run.final_validation is not None


def test_training_finds_the_posterior_of_every_context():
    flow = build(2)
    _, run = fit(
        DoublyReparameterised(normal, 4), flow, contexts(200), steps=150, batch_size=50, lr=2e-2,
        ema=training.EMA(0.95), log_every=50,
    )  # fmt: skip
    c = torch.tensor([[0.0, 0.0], [1.0, -1.0]], dtype=F64)
    x = flow.sample((4000,), c, generator=torch.Generator().manual_seed(0))
    assert float((x.mean(0) - c).abs().max()) < 0.1
    assert x.std(0).flatten().tolist() == pytest.approx([0.5] * 4, abs=0.1)
    assert run.history[-1]["effective_samples"] > 3.8
    # Z = pi / 2 for every context.
    assert run.final_loss == pytest.approx(-torch.tensor(torch.pi / 2).log().item(), abs=0.05)


@pytest.mark.parametrize(
    ("flow", "objective", "given", "message"),
    [
        (small_flow(), SmallMatching(), {}, r"fit\(data=None\): SmallMatching learns from data.*\[N, \*event\]"),
        (build(), None, {"data": torch.zeros(20, 2)}, r"fit\(data=...\): ReverseKL uses no data"),
        (build(), None, {"validation": torch.zeros(20, 2)}, r"fit\(validation=...\).*omit validation"),
        (build(2), None, {}, r"fit\(data=None\): this flow is conditional \(context_shape=\(2,\)\).*\[N, 2\]"),
        (build(2), None, {"data": (contexts(), contexts())}, "items of 2 parts.*pass contexts alone"),
        (build(2), None, {"data": torch.zeros(20, 3)}, r"the context has shape \(20, 3\), but the flow reads contexts"),
        (build(2), None, {"data": torch.full((20, 2), torch.nan)}, "20 of 20 rows have NaN"),
        (build(2), None, {"data": contexts(8)}, "choose batch_size <= 8"),
        (build(2), None, {"data": contexts(), "validation": contexts(0)}, "there are no rows"),
        (build(2), None, {"data": DataLoader(torch.zeros(20, 3), 8)}, r"\(8, 3\)"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(flow, objective, given, message):
    with pytest.raises(ValueError, match=message):
        fit(objective, flow, **given)


def test_an_infinite_target_stops_at_its_step():
    flow = build()
    with pytest.raises(FloatingPointError, match="at step 0 the loss is inf"):
        fit(ReverseKL(lambda x: x.sum(1) - torch.inf), flow)
    assert torch.equal(weights(flow), weights(build()))


def together(across, processes=1):
    """A run on a batch of 16, whatever the number of processes; its draws, flow and history."""
    seen = []

    class Watched(PathDerivative):
        def loss(self, flow, batch):
            seen.append(batch.z)
            return super().loss(flow, batch)

    flow, run = fit(Watched(normal), batch_size=16 // processes, across_processes=across)
    return seen, weights(flow), [row["loss"] for row in run.history]


def test_two_processes_draw_each_their_own_or_all_together(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    shared["PYTHONPATH"] = os.pathsep.join((str(Path(__file__).parent), str(Path(__file__).parents[2])))
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [each.communicate(timeout=120)[1] for each in started]
    finally:
        for each in started:
            each.kill()
    assert all((tmp_path / f"{rank}.pt").exists() for rank in range(2)), "\n".join(said)
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    _, alone, history = together(across=True)
    for way in ("ddp", "fsdp"):
        draws, same, losses = one[way, True]
        torch.testing.assert_close(same, alone, rtol=1e-9, atol=1e-12)
        assert losses == pytest.approx(history, rel=1e-6)
        assert torch.equal(two[way, True][1], same)
        assert torch.equal(torch.cat([draws[0], two[way, True][0][0]]), together(across=True)[0][0])
    # By themselves: other draws on each, one flow.
    assert torch.equal(one["ddp", False][1], two["ddp", False][1])
    for mine, theirs in zip(one["ddp", False][0], two["ddp", False][0]):
        assert mine.shape == theirs.shape == (8, 1, 2)
        assert not torch.isclose(mine, theirs).any()


if __name__ == "__main__":
    found = {("ddp", across): together(across, 2) for across in (True, False)}
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    found["fsdp", True] = together(True, 2)
    torch.save(found, Path(sys.argv[1]) / f"{os.environ['RANK']}.pt")
    torch.distributed.barrier()
    os._exit(0)  # a thread of the group may abort the interpreter's shutdown
