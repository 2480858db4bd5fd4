"""FFJORD against what is known of linear fields: their solutions, densities and energies are closed forms."""

import csv
import itertools
import math
import warnings

import pytest
import scipy.stats
import torch
from torch import nn

import cflow
from cflow import bases, data, discrete, divergence, fields, objectives, paths, solvers, training
from cflow.fields.end_time import EndTime

TIGHT = {"rtol": 1e-10, "atol": 1e-10}
MATRIX = [[0.6, -0.8], [0.3, -0.4]]


class LinearField(fields.Field):
    """``v(t, x) = A x + b + C c``, with a closed form of its divergence."""

    def __init__(self, matrix=MATRIX, context=0):
        matrix = torch.tensor(matrix, dtype=torch.float64)
        super().__init__(len(matrix), context or None)
        self.matrix = nn.Parameter(matrix)
        self.shift = nn.Parameter(torch.linspace(-0.5, 0.7, len(matrix), dtype=torch.float64))
        self.mixing = nn.Parameter(torch.ones(len(matrix), context, dtype=torch.float64)) if context else None

    def forward(self, t, x, context=None, *, s=None):
        self.check(t, x, context, s)
        return x @ self.matrix.T + self.shift + (0 if context is None else context @ self.mixing.T)

    def value_and_divergence(self, t, x, context=None):
        return self(t, x, context), self.matrix.trace().expand(len(x))


def linear_flow(**options):
    field = LinearField(**options)
    return cflow.ContinuousFlow(field, bases.Normal(2), context_shape=field.context_shape).double()


def carried(field, x, length=1.0, context=None):
    """Solves the linear equation back over a length of time: the matrix exponential of ``[[A, b], [0, 0]]``."""
    shift = field.shift if context is None else field.shift + context @ field.mixing.T
    shift = shift.expand(len(x), -1)
    generator = torch.zeros(len(x), 3, 3, dtype=torch.float64)
    generator = torch.cat((torch.cat((field.matrix.expand(len(x), 2, 2), shift.unsqueeze(2)), 2), generator[:, 2:]), 1)
    point = torch.cat((x, torch.ones(len(x), 1, dtype=torch.float64)), 1)
    return (torch.linalg.matrix_exp(-length * generator) @ point.unsqueeze(2))[:, :2, 0]


def nats_of(field, x, length=1.0, context=None):
    """The negative log-density of a standard normal carried over a length of time."""
    z = carried(field, x, length, context)
    return z.square().sum(1) / 2 + math.log(2 * math.pi) + length * field.matrix.trace()


def points(generator, count=5):
    return torch.randn(count, 2, generator=generator, dtype=torch.float64) + 0.5


MODES = {
    "backprop": solvers.Dopri5(**TIGHT),
    "checkpointed": solvers.Dopri5(**TIGHT, gradient=solvers.Checkpointed()),
    "joint": solvers.Dopri5(**TIGHT, per_sample=False, gradient=solvers.Checkpointed()),
    "fixed grid": solvers.RK4(steps=100, gradient=solvers.Checkpointed()),
    "torchdiffeq": solvers.TorchDiffEq("dopri5", **TIGHT),
    "continuous adjoint": solvers.TorchDiffEq("dopri5", **TIGHT, gradient=solvers.ContinuousAdjoint()),
}
DIVERGENCES = {"exact": divergence.Exact(), "analytic": divergence.Analytic()}


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
            assert (name in objective.told) == (value is not None)
            assert value is None or float(objective.told[name]) == pytest.approx(float(value.detach().mean()), abs=1e-8)


def test_the_estimated_norm_is_the_squared_length_of_the_probes_product(generator):
    flow, x = linear_flow(), points(generator)
    objective = objectives.FFJORD(jacobian=1.0, solver=solvers.Dopri5(**TIGHT))
    batch = objective.prepare(flow.base, (x, 0.0), None, generator)
    objective.loss(flow, batch)
    products = batch.probe.squeeze(1) @ flow.field.matrix.detach()
    assert float(objective.told["jacobian"]) == pytest.approx(float(products.square().sum(1).mean()), abs=1e-8)


# Random and learned lengths of time


class Clock(fields.Field):
    """``v(t, x) = exp(t) x``: the density tells over which times it was integrated."""

    def __init__(self):
        super().__init__(1)
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, t, x, context=None, *, s=None):
        t = self.check(t, x, context, s).reshape(-1, 1)
        return self.weight * torch.exp(t) * x


def clock_nats(x, length):
    """From ``1 - length`` to 1 the rates ``exp(t)`` add up to ``e - exp(1 - length)``."""
    total = math.e - torch.exp(1 - torch.as_tensor(length, dtype=torch.float64))
    return (x * torch.exp(-total)).square().sum(1) / 2 + math.log(2 * math.pi) / 2 + total


@pytest.mark.parametrize("solver", ["per sample", "joint", "continuous adjoint"])
def test_the_base_end_is_the_random_one(generator, solver):
    solver = {
        "per sample": solvers.Dopri5(**TIGHT),
        "joint": solvers.Dopri5(**TIGHT, per_sample=False, gradient=solvers.Checkpointed()),
        "continuous adjoint": MODES["continuous adjoint"],
    }[solver]
    flow = cflow.ContinuousFlow(Clock(), bases.Normal(1)).double()
    objective = objectives.FFJORD(divergence.Exact(), 1.0, 1.0, solver, steer=0.5)
    x = torch.randn(4, 1, generator=generator, dtype=torch.float64)
    batch = objective.prepare(flow.base, (x, 0.0), None, generator)
    length = float(batch.length)
    assert abs(length - 1) > 0.05
    objective.loss(flow, batch)
    assert float(objective.told["nats"]) == pytest.approx(float(clock_nats(x, length).mean()), abs=1e-8)
    # The energies are over the stretch walked: of the norm, the integral of exp(2 t) from 1 - T to 1.
    assert float(objective.told["jacobian"]) == pytest.approx((math.e**2 - math.exp(2 - 2 * length)) / 2, abs=1e-7)
    times = torch.linspace(1 - length, 1, 20001, dtype=torch.float64)
    squares = torch.exp(2 * times) * torch.exp(2 * (torch.exp(times) - math.e))
    energy = torch.trapezoid(squares, times) * x.square().mean()
    assert float(objective.told["kinetic"]) == pytest.approx(float(energy), rel=1e-6)
    objective.loss(flow.eval(), batch)
    assert float(objective.told["nats"]) == pytest.approx(float(clock_nats(x, 1.0).mean()), abs=1e-8)


def test_lengths_are_uniform_and_one_for_the_batch(generator):
    objective = objectives.FFJORD(steer=0.4)
    x = torch.zeros(3, 2, dtype=torch.float64)
    drawn = [objective.prepare(None, (x, 0.0), None, generator).length for _ in range(2000)]
    assert all(each.shape == () for each in drawn)
    law = scipy.stats.uniform(0.6, 0.8)
    assert scipy.stats.kstest(torch.stack(drawn).numpy(), law.cdf).pvalue > 1e-4  # fails once in 10,000 seeds
    assert objectives.FFJORD().prepare(None, (x, 0.0), None, generator).length is None


@pytest.mark.parametrize("way", ["exact", "analytic"])
@pytest.mark.parametrize("mode", ["backprop", "checkpointed", "continuous adjoint"])
def test_a_learned_length_has_the_density_of_the_field_over_it(generator, mode, way):
    inner, x = LinearField(), points(generator)
    flow = cflow.ContinuousFlow(EndTime(inner, initial=1.7), bases.Normal(2)).double()
    options = {"solver": MODES[mode], "divergence": DIVERGENCES[way]}
    length = flow.field.length.detach()
    assert float(length) == pytest.approx(1.7)
    assert torch.allclose(flow.log_prob(x, **options), -nats_of(inner, x, length), atol=1e-8, rtol=0)
    objectives.FFJORD(**options)(flow, x).mean().backward()
    logarithm = float(length.log())
    ahead, behind = (float(nats_of(inner, x, math.exp(logarithm + h)).detach().mean()) for h in (1e-5, -1e-5))
    assert float(flow.field.logarithm.grad) == pytest.approx((ahead - behind) / 2e-5, abs=1e-7)


def test_a_learned_length_moves_the_base_end_and_multiplies_with_a_random_one(generator):
    flow = cflow.ContinuousFlow(EndTime(Clock(), initial=0.6), bases.Normal(1)).double()
    x = torch.randn(4, 1, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        found = flow.log_prob(x, solver=solvers.Dopri5(**TIGHT))
    assert torch.allclose(found, -clock_nats(x, 0.6), atol=1e-8)
    objective = objectives.FFJORD(divergence.Exact(), solver=solvers.Dopri5(**TIGHT), steer=0.3)
    batch = objective.prepare(flow.base, (x, 0.0), None, generator)
    assert torch.allclose(objective.loss(flow, batch), clock_nats(x, 0.6 * batch.length), atol=1e-8)


def test_a_length_is_learned(generator):
    """Data of variance ``exp(2 T)`` with T = 0.4 of a field that cannot learn: only its length can."""
    field = LinearField(matrix=torch.eye(2).tolist())
    nn.init.zeros_(field.shift)
    field.requires_grad_(False)
    flow = cflow.ContinuousFlow(EndTime(field), bases.Normal(2)).double()
    x = math.exp(0.4) * torch.randn(2000, 2, generator=generator, dtype=torch.float64)
    objective = objectives.FFJORD(divergence.Analytic(), solver=solvers.RK4(steps=4))
    training.fit(flow, objective, x, steps=150, batch_size=200, lr=5e-2, ema=None)
    fitted = x.square().mean().log() / 2  # of maximum likelihood; what is left is the noise of the last steps
    assert float(flow.field.length.detach()) == pytest.approx(float(fitted), abs=0.03)


def test_end_time_keeps_the_shapes_of_its_field_and_is_saved(tmp_path, generator):
    field = EndTime(fields.MLP(2, hidden=(8,), classes=3), initial=0.5)
    nn.init.normal_(field.field.output.weight, generator=generator)
    with torch.no_grad():
        field.logarithm.fill_(0.3)
    assert (field.event_shape, field.context_shape, field.classes) == ((2,), (), 3)
    labels = torch.tensor([0, 2])
    assert torch.equal(field.null_context(labels), torch.tensor([3, 3]))
    flow = cflow.ContinuousFlow(field, bases.Normal(2), context_shape=())
    cflow.save(flow, tmp_path / "flow")
    again = cflow.load(tmp_path / "flow")
    x = torch.randn(2, 2, generator=generator)
    assert torch.equal(again.log_prob(x, labels), flow.log_prob(x, labels))
    assert float(again.field.length.detach()) == pytest.approx(math.exp(0.3))


@pytest.mark.parametrize("t", [torch.tensor(0.3), torch.tensor(0.3).expand(4), torch.tensor([0.3, 0.3, 0.7, 0.1])])
def test_end_time_reads_shared_and_separate_times_alike(t, generator):
    field = EndTime(Clock(), initial=2.0)
    x = torch.randn(4, 1, generator=generator, dtype=torch.float64)
    truth = 2 * torch.exp(1 - 2 * (1 - t.double().expand(4))).unsqueeze(1) * x
    assert torch.allclose(field(t.double(), x), truth)


def test_end_time_refuses_what_it_cannot_integrate():
    with pytest.raises(TypeError, match=r"EndTime\(field=Linear\): a field tells the shapes.*fields.Adapted"):
        EndTime(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"EndTime\(initial=0.0\): a stretch of time has a positive length"):
        EndTime(fields.MLP(2), initial=0.0)
    two = fields.MLP(2)
    two.two_times = True
    with pytest.raises(ValueError, match="averages between two times"):
        EndTime(two)
    with pytest.raises(TypeError, match="no divergence in closed form"):
        EndTime(Clock()).value_and_divergence(torch.tensor(0.5), torch.zeros(1, 1).double())


# Flows of all kinds


def scattered(flow, generator):
    """Sets the last layer off zero, where fields stand still."""
    nn.init.normal_(flow.field.output.weight, std=0.5, generator=generator)
    return flow


EXACTLY = {"divergence": divergence.Exact(), "solver": solvers.Dopri5(rtol=1e-7, atol=1e-7)}


def test_transforms_are_part_of_the_loss(generator):
    flow = linear_flow().with_transform(data.Standardise(2, loc=5.0, scale=3.0).double())
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
        ({"kinetic": -0.1}, ValueError, "FFJORD(kinetic=-0.1): a regulariser is weighed by a finite number"),
        ({"jacobian": math.inf}, ValueError, "FFJORD(jacobian=inf): a regulariser is weighed by a finite number"),
        ({"steer": 1.0}, ValueError, "FFJORD(steer=1.0): the length of a solve"),
        ({"divergence": divergence.Exact}, TypeError, "options are objects; pass one such as divergence.Hutchinson()"),
        ({"solver": "dopri5"}, TypeError, "FFJORD(solver='dopri5'): options are objects"),
        (
            {"divergence": divergence.Analytic(), "jacobian": 0.01},
            ValueError,
            "this divergence comes without the Jacobian's norm, which the regulariser weighs; pass divergence.Hutch",
        ),
        (
            {"solver": solvers.Dopri5(gradient=solvers.ContinuousAdjoint())},
            ValueError,
            "this solver has no continuous adjoint",
        ),
        ({"solver": solvers.CudaGraph(solvers.RK4(4))}, ValueError, "this solver has no gradient= to choose"),
        ({"solver": solvers.EulerMaruyama(steps=4)}, ValueError, "this solver simulates noise"),
    ],
)
def test_options_that_cannot_work_are_refused(options, kind, part):
    raised(kind, part, objectives.FFJORD, **options)


def test_flows_that_cannot_be_trained_so_are_refused(generator):
    x = torch.randn(4, 2, generator=generator)
    objective = objectives.FFJORD()
    raised(ValueError, "FFJORD: a NormalizingFlow has no vector field", objective, discrete.nsf(2, layers=2), x)
    flow = cflow.ContinuousFlow(fields.MLP(2), bases.Empirical(x))
    raised(ValueError, "FFJORD: this ContinuousFlow has no density to maximise", objective, flow, x)
    flow = cflow.ContinuousFlow(fields.MLP(2), bases.Normal(2), path=paths.Linear(predict="x1"))
    raised(
        ValueError, "train with steer=0, or a flow that predicts the velocity", objectives.FFJORD(steer=0.1), flow, x
    )


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
    raised(FloatingPointError, "lower lr or clip gradients", objective, flow, torch.tensor([[0.1], [50.0]]))


# Training: repeatable, resumable, and what it reports


def small(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return cflow.ContinuousFlow(fields.MLP(2, hidden=(8,)), bases.Normal(2))


REGULARISED = {"kinetic": 0.05, "jacobian": 0.1, "steer": 0.2}


def fitted(objective, flow, x, **options):
    settings = {"steps": 6, "batch_size": 16, "lr": 1e-2, "log_every": 2, "seed": 3, "schedule": training.Constant()}
    return training.fit(flow, objective, x, **(settings | options))


def without_clock(run):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in run.history]


def test_training_repeats_to_the_bit_and_resumes(tmp_path, generator):
    x = 2 * torch.randn(64, 2, generator=generator)
    make = lambda: objectives.FFJORD(**REGULARISED)
    flows = [small() for _ in range(4)]
    options = {"validation": x[:20], "validate_every": 6}
    runs = [fitted(make(), flows[0], x, **options), fitted(make(), flows[1], x, prefetch=2, workers=2, **options)]

    def fail(step, flow):
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
    assert objective.told["nfe"] == stats.nfe
    assert float(objective.told["rejected"]) == pytest.approx(float(stats.rejected.double().mean()))
    assert float(objective.told["rejected"]) >= 1


class Told(objectives.FlowMatching):
    """Tells the number of its call."""

    tells = ("calls",)
    count = 0

    def loss(self, flow, batch):
        self.count += 1
        self.tell(calls=torch.tensor(float(self.count)))
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


def test_numbers_that_were_not_announced_are_refused(generator):
    x = torch.randn(32, 2, generator=generator)
    with pytest.raises(ValueError, match=r"Told.tell\(loss\): the columns of a history are fixed"):
        Told().tell(loss=1.0)
    with pytest.raises(ValueError, match="tells names none"):
        objectives.FlowMatching().tell(calls=1.0)
    silent = objectives.FlowMatching()
    silent.tells = ("calls",)
    with pytest.raises(ValueError, match=r"FlowMatching.tells names calls, and its loss told nothing; end loss\(\)"):
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
    assert "at step 250 a solve takes 121 calls of the field, and took 30 at first" in told[4][0]
    assert "Regularise (kinetic=0.01, jacobian=0.01)" in told[4][0]
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
    faster = lambda step, flow: setattr(flow.field, "turns", 0 if step < 3 else 20)
    x = torch.randn(16, 2, generator=generator, dtype=torch.float64)
    with pytest.warns(UserWarning, match="the flow becomes stiff") as told:
        fitted(objectives.FFJORD(), flow, x, lr=1e-9, log_every=1, callbacks=[faster], batch_size=4)
    assert len(told) == 1
