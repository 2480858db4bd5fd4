"""fit: learning, what it leaves alone, what it records."""

import os

import pytest
import torch
from torch import nn
from training_standins import Regression, SmallMatching, Squares, data, small_flow, train

from cflow import training


def regression_data(generator, count=64):
    context = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    x = context @ torch.randn(3, 2, generator=generator, dtype=torch.float64) + 1.5
    return x + 0.3 * torch.randn(count, 2, generator=generator, dtype=torch.float64), context


def least_squares(x, context):
    design = torch.cat([context, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    return torch.linalg.lstsq(design, x).solution


def same(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("ema", [None, training.EMA(0.9)])
def test_it_converges_to_least_squares(generator, ema):
    x, context = regression_data(generator)
    flow = Regression()
    run = training.fit(flow, Squares(), (x, context), steps=600, batch_size=64, lr=0.05, ema=ema)
    best = least_squares(x, context)
    torch.testing.assert_close(torch.cat([flow.map.weight.T, flow.map.bias[None]]), best, atol=1e-3, rtol=0)
    design = torch.cat([context, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    assert run.final_loss == pytest.approx(float((design @ best - x).square().sum(1).mean()), rel=1e-3)


@pytest.mark.parametrize("kind", ["tensor", "dataset", "loader"])
def test_prefetching_changes_nothing(kind):
    (one, first), (other, second) = train(kind, prefetch=0), train(kind, prefetch=3)
    assert same(one, other)
    assert [row["loss"] for row in first.history] == [row["loss"] for row in second.history]


def test_another_seed_gives_another_run():
    assert not same(train()[0], train(seed=4)[0])


def test_the_flow_holds_the_average_of_the_weights():
    seen = []
    flow, _ = train(
        ema=training.EMA(0.8), steps=12, callbacks=[lambda step, flow, row: seen.append(weight(flow).clone())]
    )
    average = weight(small_flow())
    for number, value in enumerate(seen, 1):
        average = average + (1 - min(0.8, (1 + number) / (10 + number))) * (value - average)
    torch.testing.assert_close(weight(flow), average)
    assert not torch.allclose(weight(flow), seen[-1])


def weight(flow):
    return flow.net[0].weight.detach()


@pytest.mark.parametrize("count", [2, 5, 64])
def test_accumulation_computes_the_whole_batch(generator, count):
    x, context = regression_data(generator)
    runs = []
    for accumulate in (1, count):
        flow = Regression()
        training.fit(flow, Squares(), (x, context), steps=20, batch_size=32, lr=0.05, accumulate=accumulate)
        runs.append(flow)
    torch.testing.assert_close(runs[0].map.weight, runs[1].map.weight, atol=1e-12, rtol=1e-10)


class Kept(Squares):
    """Keeps some rows only, as a partial plan does: the loss is the mean over what is left."""

    def __init__(self, share):
        super().__init__()
        self.share, self.sizes = share, []

    def prepare(self, base, u, context, generator):
        kept = torch.randperm(len(u), generator=generator)[: round(self.share * len(u))].sort().values
        return {"x": u[kept], "context": context[kept]}

    def loss(self, flow, batch):
        self.sizes.append(len(batch["x"]))
        return super().loss(flow, batch)


def test_pieces_follow_the_rows_that_a_coupling_keeps(generator):
    x, context = regression_data(generator)
    runs = []
    for accumulate in (1, 3):
        flow, objective = Regression(), Kept(0.6)
        training.fit(flow, objective, (x, context), steps=20, batch_size=32, lr=0.05, accumulate=accumulate)
        assert objective.sizes == [19] * 20 if accumulate == 1 else [6, 6, 7] * 20
        runs.append(flow)
    torch.testing.assert_close(runs[0].map.weight, runs[1].map.weight, atol=1e-12, rtol=1e-10)


def test_a_pool_is_drawn_together_and_handed_out_in_equal_parts(generator):
    x, context = regression_data(generator)
    objective, seen = Kept(0.75), []
    inner = objective.prepare

    def prepare(base, u, context, generator):
        seen.append(len(u))
        return inner(base, u, context, generator)

    objective.prepare = prepare
    training.fit(Regression(), objective, (x, context), steps=6, batch_size=16, pool=4, prefetch=0)
    assert seen == [64, 64]
    assert objective.sizes == [12] * 6
    with pytest.raises(ValueError, match="left 1 of 64 rows, too few for 4 pieces"):
        training.fit(Regression(), Kept(0.01), (x, context), steps=6, batch_size=16, pool=4)


def test_a_pool_of_one_row_order_is_the_batches_of_its_steps():
    """Where the coupling keeps the order of the data, each step gets its own rows, drawn with the pool's generator."""
    batches = {1: [], 3: []}

    class Noted(SmallMatching):
        def loss(self, flow, batch):
            batches[pool].append(batch)
            return super().loss(flow, batch)

    for pool in batches:
        training.fit(small_flow(), Noted(), data(), steps=8, batch_size=16, pool=pool)
    assert all(torch.equal(a.x1, b.x1) for a, b in zip(*batches.values(), strict=True))
    equal = [torch.equal(a.x0, b.x0) for a, b in zip(*batches.values())]
    assert not any(equal[step] for step in (1, 2, 4, 5, 7))


@pytest.mark.parametrize("options", [{"workers": 3}, {"workers": 2, "prefetch": 5}, {"prefetch": 0}])
def test_workers_change_nothing(options):
    (one, first), (other, second) = train(pool=2, **options), train(pool=2, workers=1)
    assert same(one, other)
    assert [row["loss"] for row in first.history] == [row["loss"] for row in second.history]


def test_random_state_modes_and_folder_are_left_alone(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    flow = small_flow().eval()
    flow.net[3].train()
    before = torch.get_rng_state()
    train(flow=flow, validation=data(50))
    assert torch.equal(before, torch.get_rng_state())
    assert not flow.training
    assert not flow.net[0].training
    assert flow.net[3].training
    assert os.listdir(tmp_path) == []
    assert capfd.readouterr() == ("", "")


def test_progress_is_shown_when_asked_for(capfd):
    train(steps=6, progress=True)
    assert "6/6" in capfd.readouterr().err


def test_validation_uses_average_weights_and_fixed_draws():
    flow, run = train(validation=data(50), validate_every=20, steps=45, batch_size=32)
    assert [row["step"] for row in run.history if "validation" in row] == [20, 40, 45]
    again = train(validation=data(50), validate_every=5, flow=flow, lr=1e-30, steps=10, ema=None)[1]
    judged = [row["validation"] for row in again.history if "validation" in row]
    # The weights stand still (the running statistics of batch norm do not, hence the tolerance).
    assert judged[0] == pytest.approx(run.final_validation, rel=0.1)
    assert run.final_validation < run.history[0]["loss"]


def test_validation_runs_in_evaluation_mode_and_training_in_training_mode():
    modes = set()

    class Noted(SmallMatching):
        def loss(self, flow, batch):
            modes.add((torch.is_grad_enabled(), flow.training, flow.net[1].training))
            return super().loss(flow, batch)

    options = {"validation": data(20), "validate_every": 2}
    training.fit(small_flow().eval(), Noted(), data(), steps=4, batch_size=32, **options)
    assert modes == {(True, True, True), (False, False, False)}


def test_validation_is_the_mean_over_all_rows(generator):
    x, context = regression_data(generator)
    flow = Regression()
    run = training.fit(flow, Squares(), (x, context), steps=30, batch_size=64, validation=(x[:23], context[:23]))
    with torch.no_grad():
        expected = (flow.map(context[:23]) - x[:23]).square().sum(1).mean()
    assert run.final_validation == pytest.approx(float(expected), rel=1e-10)


def test_bf16_trains_and_keeps_weights_in_float32():
    flow, run = train(precision="bf16")
    assert all(each.dtype == torch.float32 for each in flow.parameters())
    assert run.final_loss < run.history[0]["loss"]
    assert not same(flow, train()[0])


def test_history_holds_means_rates_and_norms():
    losses = []

    class Recorded(SmallMatching):
        def loss(self, flow, batch):
            values = super().loss(flow, batch)
            losses.append(float(values.detach().mean()))
            return values

    schedule = training.Polynomial(warmup=3)
    run = training.fit(
        small_flow(), Recorded(), data(), steps=10, batch_size=32, lr=0.1, log_every=4, schedule=schedule
    )
    assert [row["step"] for row in run.history] == [4, 8, 10]
    assert run.history[0]["loss"] == pytest.approx(sum(losses[:4]) / 4, rel=1e-6)
    assert run.history[2]["loss"] == pytest.approx(sum(losses[8:]) / 2, rel=1e-6)
    assert [row["lr"] for row in run.history] == [0.1 * schedule(step, 10) for step in (3, 7, 9)]
    assert all(row["grad_norm"] > 0 for row in run.history)
    assert run.history[0]["seconds"] < run.history[2]["seconds"] <= run.seconds


def test_clipping_bounds_the_step():
    """Adam's first step has size lr whatever the gradient, so the gradient that it is given is read."""
    seen = []

    class Squeezed(Squares):
        def loss(self, flow, batch):
            return 1e6 * super().loss(flow, batch)

    x, context = regression_data(torch.Generator().manual_seed(0))
    flow = Regression()
    inner = torch.optim.AdamW.step

    def spy(self, *arguments, **options):
        seen.append(torch.cat([each.grad.flatten() for each in flow.parameters()]).norm())
        return inner(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", spy)
        run = training.fit(flow, Squeezed(), (x, context), steps=3, batch_size=64, clip=0.5, log_every=1)
    assert [float(each) for each in seen] == pytest.approx([0.5] * 3, rel=1e-4)
    assert run.history[0]["grad_norm"] > 1e3


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.3, 0.6)])
def test_steps_are_those_of_adam_with_these_betas(betas, generator):
    x, context = regression_data(generator)
    flow = Regression()
    own = Regression()
    fixed = {"schedule": training.Constant(), "ema": None, "clip": None, "batch_size": len(x)}
    training.fit(flow, Squares(), (x, context), steps=8, lr=0.05, betas=betas, **fixed)
    adam = torch.optim.Adam(own.parameters(), lr=0.05, betas=betas)
    for _ in range(8):
        adam.zero_grad()
        (own.map(context) - x).square().sum(1).mean().backward()
        adam.step()
    for found, expected in zip(flow.parameters(), own.parameters()):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_each_batch_of_validation_has_draws_of_its_own_that_stay():
    seen = []

    class Noted(SmallMatching):
        def loss(self, flow, batch):
            if not flow.training:
                seen.append(batch.x0.clone())
            return super().loss(flow, batch)

    options = {"validation": data(32), "validate_every": 1, "batch_size": 16}
    training.fit(small_flow(), Noted(), data(), steps=2, **options)
    assert len(seen) == 4  # twice two batches
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert not torch.equal(seen[0], seen[1])


def test_weight_decay_shrinks_matrices_only(generator):
    class Nothing(Squares):
        def loss(self, flow, batch):
            return 0 * super().loss(flow, batch)

    x, context = regression_data(generator)
    flow = Regression()
    nn.init.ones_(flow.map.weight)
    nn.init.ones_(flow.map.bias)
    fixed = {"schedule": training.Constant(), "ema": None, "batch_size": 64}
    training.fit(flow, Nothing(), (x, context), steps=10, lr=0.1, weight_decay=0.5, **fixed)
    torch.testing.assert_close(flow.map.weight, torch.full_like(flow.map.weight, 0.95**10))
    torch.testing.assert_close(flow.map.bias, torch.ones_like(flow.map.bias))


def test_a_frozen_teacher_stays_and_a_learned_weight_moves():
    class Taught(SmallMatching):
        def __init__(self):
            super().__init__()
            self.teacher = nn.Linear(2, 2).requires_grad_(False)
            self.scale = nn.Parameter(torch.ones(()))

        def loss(self, flow, batch):
            return super().loss(flow, batch) * self.scale.exp() + 0 * self.teacher(batch.x1).sum(1)

    objective = Taught()
    before = objective.teacher.weight.clone()
    training.fit(small_flow(), objective, data(), steps=5, batch_size=32)
    assert torch.equal(before, objective.teacher.weight)
    assert objective.scale != 1


def test_a_learned_base_is_never_sampled_ahead():
    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(2))

        def sample(self, shape, generator=None):
            return self.loc + torch.randn(*shape, 2, generator=generator)

    class Drawn(SmallMatching):
        def loss(self, flow, batch):
            drawn.append(batch.x0)
            return (flow.base.loc - batch.x1).square().sum(1) + super().loss(flow, batch)

    results = []
    for prefetch in (0, 3):
        drawn = []
        flow = small_flow()
        flow.base = Learned()
        training.fit(flow, Drawn(), data(), steps=8, batch_size=32, lr=0.1, prefetch=prefetch)
        results.append(torch.stack(drawn))
    assert torch.equal(*results)


def test_a_callback_ends_the_run():
    _, run = train(callbacks=[lambda step, flow, row: step == 9])
    assert (run.stopped, run.steps, run.history[-1]["step"]) == (True, 9, 9)


def test_pairs_are_split_and_only_their_data_end_is_transformed():
    seen = {}

    class Shifted(type(small_flow())):
        def preprocess(self, x, context=None, *, generator=None):
            return x - 100, 0.0

    class Reflow(SmallMatching):
        samples_per_item = 2

        def prepare(self, base, u, context, generator):
            seen["x0"], seen["x1"] = u[:, 0], u[:, 1]
            return super().prepare(base, u[:, 1], context, generator)

    pairs = torch.stack([torch.zeros(40, 2), torch.full((40, 2), 100.0)], 1)
    training.fit(Shifted(), Reflow(), pairs, steps=1, batch_size=40, prefetch=0)
    assert (seen["x0"] == 0).all()
    assert (seen["x1"] == 0).all()
    with pytest.raises(ValueError, match=r"shape \[N, 2, 2\] \(a base sample and a data sample per item"):
        training.fit(Shifted(), Reflow(), pairs[:, 0], steps=1, batch_size=40)


def test_float64_flows_train_in_float64(generator):
    x, context = regression_data(generator)
    flow = Regression()
    training.fit(flow, Squares(), (x.float(), context.float()), steps=2, batch_size=32)
    assert flow.map.weight.dtype == torch.float64


def test_the_real_flow_learns_where_the_data_are(tmp_path):
    import cflow.io
    from cflow import bases, fields, objectives, paths
    from cflow.continuous.flow import ContinuousFlow

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = ContinuousFlow(fields.MLP(2), bases.Normal(2), path=paths.Linear())
    fixed = {"steps": 150, "batch_size": 100, "lr": 5e-3, "out": tmp_path, "ema": training.EMA(0.95)}
    run = training.fit(flow, objectives.FlowMatching(), data(), **fixed)
    assert run.final_loss < run.history[0]["loss"]
    samples = flow.sample((200,), generator=torch.Generator().manual_seed(0))
    assert (samples.mean(0) - 3).abs().max() < 0.4
    again = cflow.io.load(tmp_path / "model")
    assert again.trained_by == flow.trained_by == (objectives.FlowMatching().entry(),)
    assert same(again, flow)
    # A finished run, taken up again by a new flow, gives the same flow.
    fresh = ContinuousFlow(fields.MLP(2), bases.Normal(2), path=paths.Linear())
    training.fit(fresh, objectives.FlowMatching(), data(), resume=True, **fixed)
    assert same(flow, fresh)
    assert fresh.trained_by == flow.trained_by
    # The same flow that goes on with its run has been trained once.
    training.fit(flow, objectives.FlowMatching(), data(), resume=True, **fixed)
    assert fresh.trained_by == flow.trained_by


def test_only_preparation_that_plans_runs_in_a_thread_unless_asked():
    import threading

    from cflow import ContinuousFlow, bases, couplings, fields, objectives, paths

    places = set()

    class Noting(objectives.FlowMatching):
        def prepare(self, *arguments, **options):
            places.add(threading.current_thread() is threading.main_thread())
            return super().prepare(*arguments, **options)

    def runs_in_main(coupling, **options):
        places.clear()
        flow = ContinuousFlow(fields.MLP(2, hidden=(4,)), bases.Normal(2), path=paths.Linear())
        training.fit(flow, Noting(coupling), torch.zeros(16, 2), steps=3, batch_size=8, **options)
        return places

    assert runs_in_main(None) == {True}
    assert runs_in_main(couplings.OptimalTransport()) == {False}
    assert runs_in_main(None, prefetch=2) == {False}
    assert runs_in_main(couplings.OptimalTransport(), prefetch=0) == {True}
