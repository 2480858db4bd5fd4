"""What an objective tells of a run: the rows, the validation, the warning of solves that grow."""

import csv
import warnings

import pytest
import torch
from ffjord_standins import (
    REGULARISED,
    LinearField,
    fitted,
    scattered,
    small,
)

import cflow
from cflow import bases, divergence, fields, objectives, paths, solvers


def test_rows_tell_the_likelihood_from_the_regularisers(tmp_path, generator):
    x = 2 * torch.randn(64, 2, generator=generator)
    objective = objectives.FFJORD(solver=solvers.RK4(steps=3), **REGULARISED)
    run = fitted(objective, small(), x, steps=5, out=tmp_path, validation=x[:20], validate_every=4)
    assert [row["step"] for row in run.history] == [2, 4, 5]
    for row in run.history:
        for lead in ("", "validation_") if "validation" in row else ("",):
            whole = row[lead + "nats"] + 0.05 * row[lead + "kinetic"] + 0.1 * row[lead + "jacobian"]
            assert row[lead.rstrip("_") or "loss"] == pytest.approx(whole, rel=1e-5)
            assert (row[lead + "nfe"], row[lead + "rejected"]) == (12, 0)
    with (tmp_path / "history.csv").open() as file:
        written = list(csv.DictReader(file))
    told = ["nats", "kinetic", "jacobian", "nfe", "rejected"]
    columns = ["step", "loss", "grad_norm", "lr", "seconds", "validation", *told, *(f"validation_{n}" for n in told)]
    assert list(written[0]) == columns
    for row, line in zip(run.history, written):
        assert {name: float(value) for name, value in line.items() if value} == pytest.approx(row)


def test_pieces_tell_the_mean_over_the_whole_batch(generator):
    x = 2 * torch.randn(48, 2, generator=generator)
    rows = []
    for accumulate in (1, 3):
        objective = objectives.FFJORD(solver=solvers.RK4(steps=3), **REGULARISED)
        rows.append(fitted(objective, small(), x, steps=4, batch_size=20, accumulate=accumulate).history)
    for one, three in zip(*rows):
        assert {**one, "seconds": 0} == pytest.approx({**three, "seconds": 0}, rel=1e-4)


def test_validation_leaves_the_numbers_of_training_alone(generator):
    x = 2 * torch.randn(48, 2, generator=generator)
    objective = lambda: objectives.FFJORD(solver=solvers.RK4(steps=3))
    plain = fitted(objective(), small(), x).history
    judged = fitted(objective(), small(), x, validation=100 + x, validate_every=2).history
    for one, other in zip(plain, judged):
        assert other["nats"] == one["nats"]
        assert other["validation_nats"] > 1000
        assert {name: other[name] for name in one if name != "seconds"} == {
            name: value for name, value in one.items() if name != "seconds"
        }


def test_calls_and_rejected_steps_are_those_of_the_solve(generator):
    flow = scattered(small(), generator).double()
    solver = solvers.Dopri5(1e-6, 1e-6, first_step=1.0)  # too long: the first attempt is in vain
    objective = objectives.FFJORD(divergence.Exact(), solver=solver)
    x = torch.randn(8, 2, generator=generator, dtype=torch.float64)
    objective(flow, x)
    with torch.no_grad():
        stats = flow.transport(x, 1.0, 0.0, ladj=True, solver=solver, divergence=divergence.Exact()).stats
    assert objective.metrics["nfe"] == stats.nfe
    assert float(objective.metrics["rejected"]) == pytest.approx(float(stats.rejected.double().mean()))
    assert float(objective.metrics["rejected"]) >= 1


class Told(objectives.FlowMatching):
    """Tells the number of its call."""

    metric_names = ("calls",)
    count = 0

    def loss(self, flow, batch):
        self.count += 1
        self.log(calls=torch.tensor(float(self.count)))
        return super().loss(flow, batch)


def matched():
    return cflow.ContinuousFlow(fields.MLP(2, hidden=(8,)), bases.Normal(2), path=paths.Linear())


def test_any_objective_may_tell_and_review_its_numbers(generator):
    x = torch.randn(32, 2, generator=generator)
    reviewed = []
    objective = Told()
    objective.review = lambda history: reviewed.append([row["calls"] for row in history])
    fitted(objective, matched(), x)
    assert reviewed == [[1.5], [1.5, 3.5], [1.5, 3.5, 5.5]]


def test_the_history_is_reviewed_without_numbers_of_the_objective_too(generator):
    steps = []
    objective = objectives.FlowMatching()
    objective.review = lambda history: steps.append(history[-1]["step"])
    run = fitted(objective, matched(), torch.randn(32, 2, generator=generator))
    assert steps == [row["step"] for row in run.history]
    assert len(steps) > 1


def test_numbers_that_were_not_announced_are_refused(generator):
    x = torch.randn(32, 2, generator=generator)
    with pytest.raises(ValueError, match=r"Told.log\(loss\): this objective's metric_names are"):
        Told().log(loss=1.0)
    with pytest.raises(ValueError, match="metric_names are none"):
        objectives.FlowMatching().log(calls=1.0)
    silent = objectives.FlowMatching()
    silent.metric_names = ("calls",)
    with pytest.raises(ValueError, match="metric_names are calls, but its loss logged none"):
        fitted(silent, matched(), x)


def rows_with(calls):
    return [{"step": 50 * (index + 1), "nfe": each} for index, each in enumerate(calls)]


def test_growing_solves_are_warned_of_once():
    objective = objectives.FFJORD()
    history = rows_with([20.0, 40.0, 30.0, 119.0, 121.0, 300.0])
    told = []
    for count in range(1, len(history) + 1):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            objective.review(history[:count])
        told.append([str(each.message) for each in seen])
    assert [len(each) for each in told] == [0, 0, 0, 0, 1, 0]
    assert "at step 250 a solve takes 121 function evaluations, and took 30 at first" in told[4][0]
    assert "regularise (kinetic=0.01, jacobian=0.01)" in told[4][0]
    # Few calls are no burden, whatever they have grown from.
    objective.review(rows_with([8.0, 8.0, 8.0, 99.0]))


def test_fit_warns_of_solves_that_grow(generator):
    """A field that turns faster and faster: the rate of a linear field rises by itself with every step."""

    class Turning(LinearField):
        turns = 0

        def forward(self, t, x, context=None, *, s=None):
            return super().forward(t, x) * (1 + self.turns)

    field = Turning(matrix=[[0.0, -1.0], [1.0, 0.0]])
    flow = cflow.ContinuousFlow(field, bases.Normal(2)).double()
    faster = lambda step, flow, row: setattr(flow.field, "turns", 0 if step < 3 else 20)
    x = torch.randn(16, 2, generator=generator, dtype=torch.float64)
    with pytest.warns(UserWarning, match="the flow becomes stiff") as told:
        fitted(objectives.FFJORD(), flow, x, lr=1e-9, log_every=1, callbacks=[faster], batch_size=4)
    assert len(told) == 1
    assert "cflow/training" not in told[0].filename  # a line of the caller's, not of the loop
