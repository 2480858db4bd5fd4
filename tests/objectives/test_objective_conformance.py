"""Every objective, on a flow that it trains; and the objectives that the suite must refuse."""

import copy

import pytest
import torch

import cflow
from cflow import bases, bijections, couplings, discrete, divergence, fields, objectives, paths, solvers
from cflow.testing import check_objective

NORMAL = lambda x: -0.5 * (x - 1).square().sum(1)


def continuous(path=None, *, outputs=1, two_times=False, classes=0):
    field = fields.MLP(2, hidden=(8, 8), outputs=outputs, two_times=two_times, classes=classes)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    shape = () if classes else None
    return cflow.ContinuousFlow(field, bases.Normal(2), path=path or paths.Linear(), context_shape=shape)


def rows(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


LABELS = torch.arange(6) % 3
EULER = solvers.Euler(steps=2)
MEMBERS = {
    "FlowMatching": lambda: (objectives.FlowMatching(), continuous(), rows(6, 2)),
    "FlowMatching with transport": lambda: (
        objectives.FlowMatching(couplings.OptimalTransport(), weight=objectives.MinSNR()), continuous(), rows(6, 2)
    ),
    "FlowMatching with classes": lambda: (
        objectives.FlowMatching(condition_dropout=0.3), continuous(classes=3), rows(6, 2), LABELS
    ),
    "FlowMatching of tokens": lambda: (
        objectives.FlowMatching(),
        cflow.ContinuousFlow(
            continuous().field, bases.Simplex(2), path=paths.Dirichlet(), transform=[bijections.OneHot((), 2)]
        ),
        torch.arange(6) % 2,
    ),
    "BridgeMatching": lambda: (
        objectives.BridgeMatching(), continuous(paths.BrownianBridge(), outputs=2), rows(6, 2)
    ),
    "BridgeMatching, antithetic": lambda: (
        objectives.BridgeMatching(couplings.Sinkhorn(0.5), antithetic=True),
        continuous(paths.BrownianBridge(predict="velocity")), rows(6, 2),
    ),
    "RectifiedFlow": lambda: (objectives.RectifiedFlow(error=objectives.PseudoHuber()), continuous(), rows(6, 2)),
    "Reflow": lambda: (objectives.Reflow(), continuous(), rows(6, 2, 2)),
    "Distillation": lambda: (objectives.Distillation(2), continuous(), rows(6, 2, 2)),
    "Distillation by a teacher": lambda: (
        objectives.Distillation(1, teacher=continuous(), solver=EULER), continuous(), torch.empty(6, 0)
    ),
    "MeanFlow": lambda: (objectives.MeanFlow(share=0.5), continuous(two_times=True), rows(6, 2)),
    "Shortcut": lambda: (objectives.Shortcut(share=0.5), continuous(two_times=True), rows(6, 2)),
    "LagrangianSelfDistillation": lambda: (
        objectives.LagrangianSelfDistillation(share=0.5), continuous(two_times=True), rows(6, 2)
    ),
    "ConsistencyFlowMatching": lambda: (objectives.ConsistencyFlowMatching(), continuous(), rows(6, 2)),
    "MultiMarginal": lambda: (
        objectives.MultiMarginal((0.0, 0.4, 1.0)),
        cflow.ContinuousFlow(continuous().field, bases.Normal(2)), rows(6, 3, 2),
    ),
    "MaximumLikelihood": lambda: (objectives.MaximumLikelihood(), discrete.nsf(2, layers=2), rows(6, 2)),
    "MaximumLikelihood with classes": lambda: (
        objectives.MaximumLikelihood(condition_dropout=0.3), discrete.nsf(2, classes=3, layers=2), rows(6, 2), LABELS
    ),
    "MaximumLikelihood of integers": lambda: (
        objectives.MaximumLikelihood(),
        discrete.maf(2, layers=1).with_transform(bijections.Dequantise(2, 4)), torch.tensor([[0, 3], [2, 1]]),
    ),
    "FFJORD": lambda: (
        objectives.FFJORD(divergence.Hutchinson(), kinetic=0.1, jacobian=0.1, solver=solvers.RK4(steps=2), steer=0.2),
        continuous(), rows(6, 2),
    ),
    "ReverseKL": lambda: (objectives.ReverseKL(NORMAL, 2), discrete.nsf(2, layers=2), 6),
    "PathDerivative": lambda: (objectives.PathDerivative(NORMAL, 2), discrete.nsf(2, layers=2), 6),
    "DoublyReparameterised": lambda: (objectives.DoublyReparameterised(NORMAL, 3), discrete.nsf(2, layers=2), 6),
    "ForwardKL": lambda: (objectives.ForwardKL(NORMAL, 3), discrete.nsf(2, layers=2), 6),
    "AlphaDivergence": lambda: (objectives.AlphaDivergence(NORMAL, 3), discrete.nsf(2, layers=2), 6),
}  # fmt: skip


@pytest.mark.parametrize("name", MEMBERS)
def test_objective(name):
    check_objective(*MEMBERS[name]())


def test_every_objective_is_a_member():
    abstract = {"Objective", "TwoTimes", "Variational"}
    named = {name for name in objectives.__all__ if isinstance(getattr(objectives, name), type)}
    known = {n for n in named if issubclass(getattr(objectives, n), objectives.Objective)} - abstract
    assert known == {type(make()[0]).__name__ for make in MEMBERS.values()}


class Notes(objectives.FlowMatching):
    """Writes into the flow, as objectives must not."""

    def __init__(self, where):
        super().__init__()
        self.where = where

    def loss(self, flow, batch):
        match self.where:
            case "path":
                flow.path.margin = 0.01
            case "record":
                flow.record(self)
            case "mode":
                flow.field.eval()
            case "weights":
                with torch.no_grad():
                    flow.unread.add_(1)
            case "attribute":
                flow.field.seen = True
        return super().loss(flow, batch)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("path", "changes path of the flow$"),
        ("record", "adds or removes attributes of the flow"),
        ("mode", "changes field.training"),
        ("weights", "changes unread of the flow"),
        ("attribute", "adds or removes attributes of the flow"),
    ],
)
def test_the_suite_finds_an_objective_that_writes_into_the_flow(where, message):
    flow = continuous()
    flow.unread = torch.nn.Parameter(torch.zeros(1))  # no loss depends on it
    with pytest.raises(AssertionError, match=message):
        check_objective(Notes(where), flow, rows(6, 2))


def test_the_suite_finds_draws_beside_the_generator():
    class Careless(objectives.FlowMatching):
        def prepare(self, base, x, context=None, generator=None):
            return super().prepare(base, x + torch.randn(x.shape), context, generator)

    with pytest.raises(AssertionError, match="the same for the same generator"):
        check_objective(Careless(), continuous(), rows(6, 2))


def test_the_suite_finds_a_mean_in_place_of_losses():
    class Mean(objectives.FlowMatching):
        def loss(self, flow, batch):
            return super().loss(flow, batch).mean()

    with pytest.raises(AssertionError, match=r"shape \[6\]"):
        check_objective(Mean(), continuous(), rows(6, 2))


def test_a_loss_of_steps_leaves_the_density():
    """Validation by another objective, or a look at a loss, is no training: flow and copies stay what they are."""
    flow = continuous()
    scaled = flow.with_transform(bijections.Standardise(2, 1.0, 2.0))
    with torch.no_grad():
        objectives.Distillation(1)(scaled.eval(), rows(16, 2, 2))
    assert flow.likelihood == scaled.likelihood == "exact"
    assert flow.log_prob(rows(3, 2)).shape == (3,)


def test_whole_steps_are_refused_where_no_training_taught_them():
    flow = continuous(two_times=True)
    step = solvers.FlowMap(steps=1)
    assert flow.sample((2,), solver=step).shape == (2, 2)  # nothing is known of its training
    flow.record(objectives.FlowMatching())
    with pytest.raises(ValueError, match="it needs average velocities, and the flow was last trained"):
        flow.sample((2,), solver=step)
    flow.record(objectives.MeanFlow())
    assert flow.sample((2,), solver=step).shape == (2, 2)


def test_records_are_copied_and_saved_and_not_shared(tmp_path):
    flow = continuous()
    flow.record(objectives.FlowMatching(couplings.OptimalTransport(), condition_dropout=0.1))
    entry = cflow.TrainingEntry("objectives.FlowMatching", "velocity", "couplings.OptimalTransport", False, 0.1)
    copies = [
        copy.deepcopy(flow), copy.copy(flow), flow.with_transform(bijections.Standardise(2, 1.0, 2.0)),
        flow.with_path(paths.Cosine()), cflow.load(cflow.save(flow, tmp_path / "model")),
    ]  # fmt: skip
    assert all(each.trained_by == (entry,) for each in copies)
    for each in copies:
        each.record(objectives.FFJORD())
    assert flow.trained_by == (entry,)
    assert all([e.teaches for e in each.trained_by] == ["velocity", "density"] for each in copies)


def test_fit_adds_an_entry_each_time_and_none_where_nothing_was_learned():
    from cflow import training

    flow, x = continuous(), rows(16, 2)
    training.fit(flow, objectives.FlowMatching(), x, steps=1, batch_size=8)
    training.fit(flow, objectives.FlowMatching(), x, steps=1, batch_size=8)
    training.fit(flow, objectives.FFJORD(solver=solvers.RK4(steps=1)), x, steps=1, batch_size=8)
    assert [entry.teaches for entry in flow.trained_by] == ["velocity", "velocity", "density"]
    with pytest.raises(ValueError, match="MeanFlow"):
        training.fit(flow, objectives.MeanFlow(), x, steps=1, batch_size=8)
    assert len(flow.trained_by) == 3
