"""What fit refuses, and how it stops when numbers fail."""

import pytest
import torch
from torch import nn
from training_standins import Regression, SmallFlow, SmallMatching, Squares, data, small_flow, train

from cflow import ContinuousFlow, bases, discrete, objectives, paths, training
from cflow.fields import MLP, Adapted
from cflow.objectives import FlowMatching
from cflow.training.safety import Watch


def fit(data, flow=None, objective=None, **options):
    settings = {"steps": 3, "batch_size": 8} | options
    return training.fit(small_flow() if flow is None else flow, objective or SmallMatching(), data, **settings)


def poisoned(*rows):
    x = data()
    x[list(rows), 1] = torch.nan
    return x


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(50, 3), r"shape \(50, 3\).*events of shape \(2,\); pass a tensor of shape \[N, 2\]"),
        (torch.zeros(50), r"shape \(50,\)"),
        (torch.zeros(0, 2), "no rows"),
        (torch.zeros(5, 2), r"batch_size=8.* 5 rows; choose batch_size <= 5"),
        (poisoned(7, 31), r"2 of 200 rows have NaN or infinity \(rows \[7, 31\]\)"),
        ((torch.zeros(50, 2), torch.zeros(50, 3)), "unconditional"),
        (
            [torch.zeros(50, 2)] * 3,
            "has 3 parts; pass x, .x,. or .x, context.",
        ),
        (torch.utils.data.TensorDataset(torch.zeros(50, 4)), r"shape \(8, 4\)"),
        (torch.utils.data.DataLoader(torch.zeros(50, 4), batch_size=8), r"shape \(8, 4\)"),
        (torch.utils.data.DataLoader(torch.zeros(5, 2), batch_size=8, drop_last=True), "gave no batch"),
        (iter([torch.zeros(8, 2)] * 2), "can be read once only"),
    ],
)
def test_unfit_data_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        fit(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(50, 2, dtype=torch.float64), "conditional .*pass a pair"),
        ((torch.zeros(50, 2), torch.zeros(50, 4)), r"the context has shape \(50, 4\)"),
        ((torch.zeros(50, 2), torch.zeros(49, 3)), "50 rows and context 49"),
        ((torch.zeros(50, 2), torch.full((50, 3), torch.inf)), r"\(its context\): 50 of 50 rows"),
    ],
)
def test_unfit_contexts_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        fit(given, Regression(), Squares())


@pytest.mark.parametrize("given", [data().numpy(), (data().numpy(), data().numpy()), 3, [[1.0, 2.0]], "data"])
def test_other_types_are_refused(given):
    with pytest.raises(TypeError, match=r"fit\(data=.*torch.as_tensor"):
        fit(given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, r"steps=0"),
        ({"accumulate": 0}, r"accumulate=0"),
        ({"pool": 0}, r"pool=0"),
        ({"workers": 0}, r"workers=0"),
        ({"prefetch": -1}, r"prefetch=-1"),
        ({"seed": -1}, r"seed=-1"),
        ({"lr": 0.0}, r"fit\(lr=0.0\): a learning rate is positive; pass for instance 1e-3.$"),
        ({"clip": 0.0}, r"clip=0.0"),
        ({"precision": "fp16"}, "pass 'no' or 'bf16'"),
        ({"resume": True}, "no folder to resume from"),
        ({"flow": small_flow().requires_grad_(False)}, "unfreeze"),
        ({"validation": torch.zeros(0, 2)}, r"fit\(validation=...\): there are no rows"),
        ({"validation": torch.zeros(9, 5)}, r"fit\(validation=...\) has shape \(9, 5\)"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fit(data(), **options)


def test_a_loss_per_batch_is_refused():
    class Averaged(SmallMatching):
        def loss(self, flow, batch):
            return super().loss(flow, batch).mean()

    with pytest.raises(ValueError, match=r"Averaged.loss returned shape \(\), .*return shape \[B\]"):
        fit(data(), objective=Averaged())


def test_a_flow_that_cannot_be_saved_is_refused_before_training(tmp_path):
    class Unregistered(SmallFlow):
        pass

    with pytest.raises(ValueError, match=r"Unregistered is not registered"):
        fit(data(), flow=Unregistered(), out=tmp_path, callbacks=[lambda step, flow, row: pytest.fail("trained")])


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_error_in_preparation_reaches_the_caller(prefetch):
    class Broken(SmallMatching):
        def prepare(self, base, u, context, generator):
            raise ZeroDivisionError("in the worker")

    with pytest.raises(ZeroDivisionError, match="in the worker"):
        fit(data(), objective=Broken(), prefetch=prefetch)


class Failing(SmallMatching):
    """A loss (or only its gradient) that fails at one step."""

    def __init__(self, at, gradient):
        super().__init__()
        self.at, self.gradient, self.calls = at, gradient, 0

    def loss(self, flow, batch):
        losses, self.calls = super().loss(flow, batch), self.calls + 1
        if self.calls != self.at + 1:
            return losses
        # The square root of zero: a finite value whose derivative is not.
        return losses + (0 * losses).sqrt() if self.gradient else losses * torch.nan


@pytest.mark.parametrize("gradient", [False, True])
def test_a_non_finite_step_stops_before_the_weights_are_touched(tmp_path, gradient):
    flow, good = small_flow(), []
    note = lambda step, flow, row: good.append([each.detach().clone() for each in flow.parameters()])
    options = {"steps": 20, "batch_size": 32, "checkpoint_every": 4, "out": tmp_path, "ema": None, "seed": 5}
    with pytest.raises(
        FloatingPointError, match=r"step 10 \(batch of rows \[.*the last checkpoint is .*step-000008"
    ) as told:
        training.fit(flow, Failing(10, gradient), data(), callbacks=[note], **options)
    assert len(good) == 10
    assert all(torch.equal(a, b) for a, b in zip(flow.parameters(), good[-1], strict=True))
    first = torch.randperm(200, generator=_generator(5, 1))[4 * 32 : 4 * 32 + 8]
    assert str(first.tolist())[:-1] in str(told.value)


def _generator(seed, epoch):
    from cflow.training.streams import EPOCH, generator_for

    return generator_for("cpu", seed, EPOCH, epoch)


def test_a_non_finite_step_leaves_a_finite_average():
    flow = small_flow()
    with pytest.raises(FloatingPointError, match="no checkpoint was written"):
        training.fit(flow, Failing(3, False), data(), steps=9, batch_size=32)
    assert all(each.isfinite().all() for each in flow.parameters())


def test_the_deferred_watch_freezes_the_weights_from_the_bad_step_on():
    """The way of accelerators, run on the CPU's fused optimizer: nothing is read, nothing is poisoned."""
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, fused=True)
    watch, seen = Watch(optimizer, torch.device("cpu"), deferred=True), []
    for step in range(6):
        parameter.grad = torch.full((3,), torch.nan if step == 3 else 1.0)
        assert watch.allows(step, torch.ones(()), parameter.grad.norm())
        optimizer.step()
        seen.append(parameter.detach().clone())
    assert watch.failed_at() == 3
    assert not torch.equal(seen[1], seen[2])
    assert all(torch.equal(each, seen[2]) for each in seen[3:])


def test_a_deferred_failure_names_its_step(monkeypatch):
    made = Watch.__init__
    monkeypatch.setattr(
        Watch, "__init__", lambda self, optimizer, device, deferred: made(self, optimizer, device, True)
    )
    flow = small_flow()
    with pytest.raises(FloatingPointError, match=r"at step 5 \(batch of rows .* is not finite"):
        training.fit(flow, Failing(5, True), data(), steps=20, batch_size=32, log_every=10)
    assert all(each.isfinite().all() for each in flow.parameters())
    monkeypatch.undo()
    plain, _ = train()
    monkeypatch.setattr(
        Watch, "__init__", lambda self, optimizer, device, deferred: made(self, optimizer, device, True)
    )
    deferred, _ = train()
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), deferred.parameters(), strict=True))


def test_labels_beyond_the_classes_are_named_before_training():
    flow = ContinuousFlow(MLP(2, classes=3), bases.Normal(2), path=paths.Linear(), context_shape=())
    for wrong in (3, -1):  # 3 would mean "no condition" to the field
        labels = torch.zeros(100, dtype=torch.long)
        labels[7] = wrong
        with pytest.raises(ValueError, match=r"1 of 100 labels are not from 0 to 2 \(rows \[7\]\)"):
            training.fit(flow, FlowMatching(), (torch.randn(100, 2), labels), steps=1, batch_size=50)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": FlowMatching}, "is the class FlowMatching; pass an object"),
        ({"flow": torch.nn.Linear(2, 2)}, "pass an object such as cflow.ContinuousFlow"),
        ({"steps": 2.5}, "whole number, not a float"),
        ({"steps": "4"}, "whole number, not a str"),
        ({"ema": 0.99}, "training.EMA"),
        ({"schedule": "cosine"}, "training.Cosine"),
    ],
)
def test_arguments_of_the_wrong_kind_are_named(change, message):
    flow = ContinuousFlow(MLP(2), bases.Normal(2), path=paths.Linear())
    arguments = {"flow": flow, "objective": FlowMatching(), "data": torch.randn(64, 2), "steps": 1, "batch_size": 32}
    with pytest.raises(TypeError, match=message):
        training.fit(**(arguments | change))


def test_a_validation_loss_that_is_not_finite_stops_the_run():
    flow = ContinuousFlow(MLP(2), bases.Normal(2), path=paths.Linear())
    judged = torch.utils.data.DataLoader(torch.full((8, 2), torch.nan), batch_size=4)
    with pytest.raises(FloatingPointError, match="validation loss at step 1 is nan"):
        training.fit(flow, FlowMatching(), torch.randn(64, 2), steps=1, batch_size=32, validation=judged)


def test_an_adapted_lambda_trains_without_out_and_says_so_with_it(tmp_path):
    field = Adapted(nn.Linear(2, 2), lambda net, t, x, context: net(x), event_shape=2)
    flow = ContinuousFlow(field, bases.Normal(2), path=paths.Linear())
    with pytest.raises(ValueError, match=r"ContinuousFlow\.field.*out=None"):
        training.fit(flow, FlowMatching(), torch.randn(64, 2), steps=1, batch_size=32, out=tmp_path / "run")
    assert training.fit(flow, FlowMatching(), torch.randn(64, 2), steps=1, batch_size=32).steps == 1


def test_dictionaries_are_told_what_a_batch_is():
    class Named(torch.utils.data.Dataset):
        __len__ = lambda self: 50
        __getitem__ = lambda self, row: {"image": torch.zeros(2), "label": 0}

    data = {"image": torch.zeros(50, 2), "label": torch.zeros(50)}
    for given in (data, Named(), torch.utils.data.DataLoader(Named(), batch_size=10)):
        with pytest.raises(
            TypeError, match=r"is a dict with the keys 'image', 'label', not x or \(x, context\).*collate_fn"
        ):
            training.fit(small_flow(), SmallMatching(), given, steps=1, batch_size=10)


def test_rows_that_a_base_cannot_draw_are_the_cause_that_is_named():
    flow = discrete.NormalizingFlow(discrete.LULinear(2), bases.Uniform(2, -1.0, 1.0))
    with pytest.raises(
        FloatingPointError, match="a log-density of -inf: rows are outside the support of the flow.*base"
    ):
        training.fit(flow, objectives.MaximumLikelihood(), 9 * torch.ones(20, 2), steps=1, batch_size=10)
