"""FFJORD against what is known of linear fields: their solutions, densities and energies are closed forms."""

import itertools
import math

import pytest
import torch
from ffjord_standins import (
    DIVERGENCES,
    EXACTLY,
    MODES,
    REGULARISED,
    TIGHT,
    fitted,
    linear_flow,
    nats_of,
    points,
    scattered,
    small,
    without_clock,
)
from torch import nn

import cflow
from cflow import bases, bijections, discrete, divergence, fields, objectives, paths, solvers, training


@pytest.mark.parametrize("how", DIVERGENCES)
@pytest.mark.parametrize("mode", MODES)
def test_loss_and_gradient_are_those_of_the_closed_form(generator, mode, how):
    flow, x = linear_flow(), points(generator)
    objective = objectives.FFJORD(divergence=DIVERGENCES[how], solver=MODES[mode])
    loss, truth = objective(flow, x), nats_of(flow.field, x)
    assert torch.allclose(loss, truth, atol=1e-8, rtol=0)
    weights = list(flow.parameters())
    found, wanted = (torch.autograd.grad(each.mean(), weights) for each in (loss, truth))
    for one, other in zip(found, wanted):
        assert torch.allclose(one, other, atol=1e-7, rtol=0)


def test_the_estimate_is_the_quadratic_form_of_the_probe_drawn_in_preparation(generator):
    flow, x = linear_flow(), points(generator)
    objective = objectives.FFJORD(divergence.Hutchinson("gaussian", probes=2), solver=solvers.Dopri5(**TIGHT))
    batch = objective.prepare(flow.base, (x, 0.0), None, generator)
    forms = torch.einsum("bki,ij,bkj->bk", batch.probe, flow.field.matrix, batch.probe).mean(1)
    truth = nats_of(flow.field, x) - flow.field.matrix.trace() + forms
    assert torch.allclose(objective.loss(flow, batch), truth, atol=1e-8, rtol=0)
    assert torch.equal(objective.loss(flow, batch), objective.loss(flow, batch))


def test_regularisers_are_the_integrals_that_they_name(generator):
    """For ``v = A x`` with diagonal A: ``|v|^2 = sum_i a_i^2 x_i^2 exp(2 a_i (t - 1))``, and the norm of A."""
    rates = torch.tensor([0.7, -1.3], dtype=torch.float64)
    flow, x = linear_flow(matrix=torch.diag(rates).tolist()), points(generator)
    nn.init.zeros_(flow.field.shift)
    energy = (rates / 2 * x.square() * (1 - torch.exp(-2 * rates))).sum(1)
    norm = rates.square().sum().expand(len(x))
    for kinetic, jacobian in ((0.3, 0.0), (0.0, 0.2), (0.3, 0.2)):
        objective = objectives.FFJORD(divergence.Exact(), kinetic, jacobian, solvers.Dopri5(**TIGHT))
        loss = objective(flow, x)
        truth = nats_of(flow.field, x)
        assert torch.allclose(loss, truth + kinetic * energy + jacobian * norm, atol=1e-8, rtol=0)
        told = {"nats": truth, "kinetic": energy if kinetic else None, "jacobian": norm if jacobian else None}
        for name, value in told.items():
            assert (name in objective.metrics) == (value is not None)
            assert value is None or float(objective.metrics[name]) == pytest.approx(
                float(value.detach().mean()), abs=1e-8
            )


def test_the_estimated_norm_is_the_squared_length_of_the_probes_product(generator):
    flow, x = linear_flow(), points(generator)
    objective = objectives.FFJORD(jacobian=1.0, solver=solvers.Dopri5(**TIGHT))
    batch = objective.prepare(flow.base, (x, 0.0), None, generator)
    objective.loss(flow, batch)
    products = batch.probe.squeeze(1) @ flow.field.matrix.detach()
    assert float(objective.metrics["jacobian"]) == pytest.approx(float(products.square().sum(1).mean()), abs=1e-8)


# Flows of all kinds


def test_transforms_are_part_of_the_loss(generator):
    flow = linear_flow().with_transform(bijections.Standardise(2, loc=5.0, scale=3.0).double())
    x = 5 + 3 * points(generator)
    loss = objectives.FFJORD(divergence.Exact(), solver=solvers.Dopri5(**TIGHT))(flow, x)
    assert torch.allclose(loss, nats_of(flow.field, (x - 5) / 3) + 2 * math.log(3), atol=1e-8)


def test_contexts_are_read(generator):
    flow, x = linear_flow(context=3), points(generator)
    context = torch.randn(len(x), 3, generator=generator, dtype=torch.float64)
    loss = objectives.FFJORD(divergence.Exact(), solver=solvers.Dopri5(**TIGHT))(flow, x, context)
    truth = nats_of(flow.field, x, context=context)
    assert torch.allclose(loss, truth, atol=1e-8)
    found, wanted = (torch.autograd.grad(each.mean(), flow.field.mixing)[0] for each in (loss, truth))
    assert torch.allclose(found, wanted, atol=1e-7)


@pytest.mark.parametrize("predict", ["velocity", "x1", "noise", "score"])
def test_every_prediction_is_trained_by_the_density_that_it_gives(predict, generator):
    flow = cflow.ContinuousFlow(fields.MLP(2, hidden=(8,)), bases.Normal(2), path=paths.Linear(predict=predict))
    flow, x = scattered(flow, generator), torch.randn(3, 2, generator=generator)
    loss = objectives.FFJORD(kinetic=0.1, **EXACTLY)(flow, x)
    assert torch.isfinite(loss).all()
    plain = objectives.FFJORD(**EXACTLY)(flow, x)
    assert torch.allclose(plain, -flow.log_prob(x, **EXACTLY), atol=1e-4)
    loss.mean().backward()
    assert all(each.grad is not None and torch.isfinite(each.grad).all() for each in flow.parameters())


def test_the_flow_keeps_its_own_solver_and_divergence(generator):
    flow = linear_flow()
    before = flow.solver, flow.divergence
    objectives.FFJORD(solver=solvers.RK4(steps=2))(flow, points(generator))
    assert (flow.solver, flow.divergence) == before
    assert flow.likelihood == "exact"


def test_half_precision_networks_keep_the_density_in_float32(generator):
    flow = scattered(cflow.ContinuousFlow(fields.MLP(2, hidden=(16,)), bases.Normal(2)), generator)
    objective = objectives.FFJORD(solver=solvers.RK4(steps=4, gradient=solvers.Checkpointed()))
    x = torch.randn(16, 2, generator=generator)
    batch = objective.prepare(flow.base, flow.preprocess(x), None, generator)
    full = objective.loss(flow, batch)
    with torch.autocast("cpu", torch.bfloat16):
        half = objective.loss(flow, batch)
    half.mean().backward()
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    assert torch.allclose(half, full, rtol=0.02, atol=0.02)  # a few roundings to eight bits
    run = training.fit(flow, objective, x, steps=3, batch_size=16, precision="bf16")
    assert math.isfinite(run.final_loss)


# What is refused


def raised(kind, part, call, *arguments, **options):
    with pytest.raises(kind) as told:
        call(*arguments, **options)
    assert part in str(told.value)


@pytest.mark.parametrize(
    ("options", "kind", "part"),
    [
        ({"kinetic": -0.1}, ValueError, "FFJORD(kinetic=-0.1): the weight is finite and not negative"),
        ({"jacobian": math.inf}, ValueError, "FFJORD(jacobian=inf): the weight is finite and not negative"),
        ({"steer": 1.0}, ValueError, "FFJORD(steer=1.0): steer is in [0, 1)"),
        ({"divergence": divergence.Exact}, TypeError, "options are objects; pass one such as divergence.Hutchinson()"),
        ({"solver": "dopri5"}, TypeError, "FFJORD: solver='dopri5': a solver is an object, not a name"),
        (
            {"divergence": divergence.Analytic(), "jacobian": 0.01},
            ValueError,
            "this divergence does not compute the Jacobian's norm; pass divergence.Hutch",
        ),
        ({"solver": solvers.CudaGraph(solvers.RK4(4))}, ValueError, "this solver has no gradient; pass one"),
        ({"solver": solvers.EulerMaruyama(steps=4)}, ValueError, "this solver simulates an SDE"),
    ],
)
def test_options_that_cannot_work_are_refused(options, kind, part):
    raised(kind, part, objectives.FFJORD, **options)


def test_flows_that_cannot_be_trained_so_are_refused(generator):
    x = torch.randn(4, 2, generator=generator)
    objective = objectives.FFJORD()
    raised(ValueError, "FFJORD: a NormalizingFlow has no vector field", objective, discrete.nsf(2, layers=2), x)
    flow = cflow.ContinuousFlow(fields.MLP(2), bases.Empirical(x))
    raised(ValueError, "FFJORD: this ContinuousFlow has no density", objective, flow, x)
    flow = cflow.ContinuousFlow(fields.MLP(2), bases.Normal(2), path=paths.Linear(predict="x1"))
    raised(ValueError, "pass steer=0, or predict the velocity", objectives.FFJORD(steer=0.1), flow, x)


class Explosion(fields.Field):
    """``v = w x^3``: from some points on, it leaves the finite numbers within the time of a flow."""

    def __init__(self):
        super().__init__(1)
        self.weight = nn.Parameter(torch.tensor(-1.0))

    def forward(self, t, x, context=None, *, s=None):
        return self.weight * x**3


@pytest.mark.parametrize(
    ("solver", "how"),
    [
        (solvers.Dopri5(rtol=1e-5, atol=1e-5), "STEP_TOO_SMALL"),
        (solvers.Dopri5(rtol=1e-5, atol=1e-5, max_steps=2, per_sample=False), "MAX_STEPS"),
        (solvers.RK4(steps=8), "NON_FINITE"),
    ],
)
def test_a_failed_solve_says_what_to_do(solver, how):
    flow = cflow.ContinuousFlow(Explosion(), bases.Normal(1))
    objective = objectives.FFJORD(solver=solver)
    raised(FloatingPointError, how, objective, flow, torch.tensor([[0.1], [50.0]]))
    raised(FloatingPointError, "lower lr, clip gradients", objective, flow, torch.tensor([[0.1], [50.0]]))


# Training: repeatable, resumable, and what it reports


def test_training_repeats_to_the_bit_and_resumes(tmp_path, generator):
    x = 2 * torch.randn(64, 2, generator=generator)
    make = lambda: objectives.FFJORD(**REGULARISED)
    flows = [small() for _ in range(4)]
    options = {"validation": x[:20], "validate_every": 6}
    runs = [fitted(make(), flows[0], x, **options), fitted(make(), flows[1], x, prefetch=2, workers=2, **options)]

    def fail(step, flow, row):
        if step == 5:
            raise InterruptedError

    # The checkpoint of step 3 holds what is pending for the row of step 4.
    options["checkpoint_every"] = 3
    with pytest.raises(InterruptedError):
        fitted(make(), flows[2], x, out=tmp_path, callbacks=[fail], **options)
    runs.append(fitted(make(), flows[3], x, out=tmp_path, resume=True, **options))
    assert runs[2].resumed_from == 3
    for flow in (flows[1], flows[3]):
        assert all(torch.equal(one, flow.state_dict()[name]) for name, one in flows[0].state_dict().items())
    assert without_clock(runs[0]) == without_clock(runs[1])
    assert without_clock(runs[0]) == without_clock(runs[2])


def test_probes_are_drawn_anew_for_every_step_from_the_seed_alone(generator):
    x = torch.randn(64, 2, generator=generator)
    seen = []

    class Watched(objectives.FFJORD):
        def loss(self, flow, batch):
            seen.append((batch.probe, batch.length))
            return super().loss(flow, batch)

    for seed in (0, 0, 1):
        fitted(Watched(steer=0.2, solver=solvers.RK4(steps=1)), small(), x, steps=3, seed=seed)
    first, second, third = seen[:3], seen[3:6], seen[6:]
    for (one, length), (two, other) in zip(first, second):
        assert one.shape == (16, 1, 2)
        assert torch.equal(one, two)
        assert torch.equal(length, other)
    for (one, length), (two, other) in itertools.combinations(first + third, 2):
        assert not torch.equal(one, two)
        assert not torch.equal(length, other)
