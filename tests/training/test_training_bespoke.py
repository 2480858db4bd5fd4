import copy
import json

import pytest
import torch
from torch import nn

import cflow
from cflow import bases, fields, guidance, paths, solvers, training
from cflow.cli import main
from cflow.solvers import DEIS, RK4, AdamsBashforth, Bespoke, DPMSolverPP2M, Euler, Heun, UniPC
from cflow.testing import GaussianField

SMALL = {"samples": 128, "validation": 128, "batch_size": 64, "reference": RK4(30)}


def gaussian(path, std=0.3):
    return cflow.ContinuousFlow(GaussianField(path, 2, 0.7, std), bases.Normal(2), path=path)


class Wavy(nn.Module):
    """A velocity that turns often."""

    def __init__(self):
        super().__init__()
        self.size = nn.Parameter(torch.tensor(1.5))

    def forward(self, t, x, context=None, *, s=None):
        return self.size * torch.sin(2 * x.flip(-1) + 3 * t.unsqueeze(1)) - x


@pytest.mark.parametrize(
    "solver", [Euler(4), Heun(3), RK4(2), AdamsBashforth(5, order=3), DPMSolverPP2M(5), UniPC(6, order=3), DEIS(5)]
)
def test_every_solver_on_a_grid_is_of_the_form(solver, generator):
    path = paths.Cosine()
    flow = gaussian(path).double()
    x = torch.randn(7, 2, generator=generator, dtype=torch.float64)
    same = Bespoke.of(solver, path=path)
    with torch.no_grad():
        one, other = (flow.transport(x, 0.0, 1.0, solver=each) for each in (solver, same))
    assert torch.allclose(one.y, other.y, atol=1e-12)
    assert one.stats.nfe == other.stats.nfe == len(same.times)


def test_a_fit_is_better_than_what_it_began_with_on_new_samples(generator):
    flow = gaussian(paths.Linear(), std=0.1)
    solver = training.fit_bespoke(flow, 5, iterations=150, **SMALL)
    assert solver.error < 0.3 * solver.error_before
    x = torch.randn(500, 2, generator=generator)
    with torch.no_grad():
        exact = flow.transport(x, 0.0, 1.0, solver=RK4(50)).y
        found = flow.transport(x, 0.0, 1.0, solver=solver)
        others = [flow.transport(x, 0.0, 1.0, solver=each(5)).y for each in (Euler, AdamsBashforth, UniPC, DEIS)]
    distance = lambda y: float((y - exact).square().mean().sqrt())
    assert distance(found.y) < 0.3 * min(map(distance, others))
    assert found.stats.nfe == 5


def test_a_fit_is_never_worse_than_what_it_began_with():
    """With a step size that ruins everything, the beginning comes back."""
    flow = cflow.ContinuousFlow(Wavy(), bases.Normal(2), path=paths.Linear())
    solver = training.fit_bespoke(flow, 4, iterations=10, lr=50.0, **SMALL)
    assert solver.error == solver.error_before < 1


def test_fits_repeat_and_leave_the_flow_as_it_was():
    flow = cflow.ContinuousFlow(Wavy(), bases.Normal(2), path=paths.Linear()).train()
    flow.field.eval()
    before, state = copy.deepcopy(flow.state_dict()), torch.get_rng_state()
    one, other = (training.fit_bespoke(flow, 3, seed=4, iterations=20, **SMALL) for _ in range(2))
    assert one == other
    assert one != training.fit_bespoke(flow, 3, seed=5, iterations=20, **SMALL)
    assert torch.equal(torch.get_rng_state(), state)
    assert flow.training
    assert not flow.field.training
    assert all(torch.equal(before[name], value) for name, value in flow.state_dict().items())
    assert all(each.grad is None and each.requires_grad for each in flow.parameters())


def test_a_conditional_flow_under_guidance(generator):
    class Labelled(Wavy):
        context_shape, classes = torch.Size(()), 3

        def null_context(self, context):
            return torch.full_like(context, 3)

        def forward(self, t, x, context=None, *, s=None):
            return super().forward(t, x) * (1 + 0.3 * context.unsqueeze(1))

    flow = cflow.ContinuousFlow(Labelled(), bases.Normal(2), path=paths.Linear(), context_shape=())
    guide = guidance.ClassifierFree(1.5)
    options = {"context": torch.arange(3), "guidance": guide, "iterations": 40, **SMALL}
    solver = training.fit_bespoke(flow, 4, **options)
    assert solver.error < solver.error_before
    draw = lambda each: flow.sample(
        (50,), torch.arange(3), solver=each, guidance=guide, generator=torch.Generator().manual_seed(1)
    )
    exact = draw(RK4(50))
    assert (draw(solver) - exact).square().mean() < (draw(Euler(4)) - exact).square().mean()
    with pytest.raises(ValueError, match="needs contexts"):
        training.fit_bespoke(flow, 4, **SMALL)
    with pytest.raises(ValueError, match=r"context of shape \(3, 2\)"):
        training.fit_bespoke(flow, 4, context=torch.zeros(3, 2), **SMALL)


@pytest.mark.parametrize("path", [paths.Linear("x1"), paths.Cosine("noise"), paths.VariancePreserving("score")])
def test_flows_whose_interval_is_shorter(path, generator):
    flow = gaussian(path)
    solver = training.fit_bespoke(flow, 4, iterations=30, **SMALL)
    low, high = flow.interval
    assert solver.interval == (0.0, 1.0)
    assert low <= min(solver.times) <= max(solver.times) <= high
    x = torch.randn(200, 2, generator=generator)
    solution = flow.transport(x, 0.0, 1.0, solver=solver)
    exact = flow.field.carry(x, 0.0, 1.0)[0]
    assert solution.success.all()
    assert solution.stats.nfe == 4  # the ends are reached without a call more
    assert (solution.y - exact).abs().mean() < 0.1
    if low > 0:
        with pytest.raises(ValueError, match="fit it to this flow"):
            flow.transport(x, 0.0, 1.0, solver=Bespoke.of(Euler(3)))


def test_a_flow_without_a_path():
    flow = cflow.ContinuousFlow(Wavy(), bases.Normal(2))
    solver = training.fit_bespoke(flow, 4, iterations=20, **SMALL)
    assert solver.error <= solver.error_before


def test_gradients_and_dtypes(generator):
    solver = Bespoke.of(Heun(2))
    y0 = torch.randn(3, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    field = lambda t, y: torch.sin(y) + t.unsqueeze(1)
    assert torch.autograd.gradcheck(lambda y: solver.solve(field, y, 0.0, 1.0).y, (y0,))
    nested = solver.solve(lambda t, y: {"a": -y["a"]}, {"a": torch.ones(2, 3, dtype=torch.bfloat16)}, 0.0, 1.0)
    assert nested.y["a"].dtype == torch.bfloat16
    assert solver.solve(field, torch.ones(0, 2), 0.0, 1.0, at=[0.0, 1.0]).trajectory.shape == (2, 0, 2)


def test_saving_alone_and_with_a_flow(tmp_path):
    solver = Bespoke.of(AdamsBashforth(3))
    assert Bespoke.read(solver.write(tmp_path / "solver.json")) == solver
    flow = cflow.ContinuousFlow(fields.MLP(2, hidden=(8,)), bases.Normal(2), path=paths.Linear(), solver=solver)
    assert cflow.load(cflow.save(flow, tmp_path / "flow")).solver == solver
    for text in ("{}", "[1]", "no", '{"solver": "euler"}', '{"solver": "bespoke", "times": [0]}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match="not a fitted solver"):
            Bespoke.read(tmp_path / "bad.json")


def test_the_command_line_fits_and_samples(tmp_path, capsys):
    flow = cflow.ContinuousFlow(fields.MLP(2, hidden=(8,)), bases.Normal(2), path=paths.Linear())
    run = tmp_path / "run"
    cflow.save(flow, run / "model")
    main(["bespoke", str(run), "--steps", "3", "--iterations", "3"])
    captured = capsys.readouterr()
    assert "3 steps" in captured.out
    assert "drawing reference samples" in captured.err
    assert "standard solvers: " not in captured.err  # bars are for a person who watches
    file = run / "model.bespoke.json"
    assert len(json.loads(file.read_text())["times"]) == 3
    for name in ("bespoke", str(file)):
        main(["sample", str(run), "--num", "5", "--seed", "1", "--solver", name, "--output", str(tmp_path / "x.npy")])
    cflow.save(flow, run / "model")  # the folder holds nothing else
    with pytest.raises(SystemExit):
        main(["sample", str(run), "--solver", "bespoke", "--steps", "4", "--output", str(tmp_path / "x.npy")])
    assert "a fitted solver has fixed steps" in capsys.readouterr().err
    file.unlink()
    with pytest.raises(SystemExit):
        main(["sample", str(run), "--solver", "bespoke", "--output", str(tmp_path / "x.npy")])
    assert "fit one by `cflow bespoke" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["sample", str(run), "--solver", "bespok", "--output", str(tmp_path / "x.npy")])
    assert "Also bespoke, fitted by" in capsys.readouterr().err


def test_every_part_of_a_fit_shows_its_progress(capsys):
    flow = cflow.ContinuousFlow(fields.MLP(2, hidden=(8,)), bases.Normal(2), path=paths.Linear())
    options = {"samples": 8, "validation": 4, "batch_size": 4, "iterations": 3}
    quiet = training.fit_bespoke(flow, 2, progress=False, **options)
    assert capsys.readouterr().err == ""
    assert training.fit_bespoke(flow, 2, progress=True, **options) == quiet
    shown = capsys.readouterr().err
    for part in ("reference samples: 100%", "12/12", "standard solvers: 100%", "fit: 100%", "3/3"):
        assert part in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t0": 1.0, "t1": 0.0}, "fitted from 0.0 to 1.0"),
        ({"t1": 0.5}, "fitted from 0.0 to 1.0"),
        ({"at": [0.5]}, "not on the trajectory"),
        ({"quadratures": {"ladj": None}}, "not valid for integrals"),
        ({"manifold": object()}, "leave the manifold"),
    ],
)
def test_what_a_fitted_solver_cannot_do_is_refused(options, message):
    ends = [options.pop("t0", 0.0), options.pop("t1", 1.0)]
    with pytest.raises(ValueError, match=message):
        Bespoke.of(Euler(2)).solve(lambda t, y: -y, torch.ones(2, 2), *ends, **options)
    flow = cflow.ContinuousFlow(fields.MLP(2, hidden=(8,)), bases.Normal(2), path=paths.Linear())
    with pytest.raises(ValueError, match="Heun or Dopri5|Dopri5 or Heun"):
        flow.log_prob(torch.ones(2, 2), solver=Bespoke.of(Euler(2)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0.0, 0.5), (1.0,), ((0.5,), (0.5, 0.5))), "2 times, 1 starts"),
        (((0.0,), (1.0,), ((0.5, 0.1),)), "rows of"),
        (((), (), ()), "0 times"),
        (((1.5,), (1.0,), ((0.5,),)), r"times lie in \(0.0, 1.0\)"),
        (((0.5,), (float("nan"),), ((0.5,),)), "finite"),
        (((0.5,), (1.0,), ((0.5,),), (1.0, 0.0)), "two increasing times"),
    ],
)
def test_numbers_that_make_no_solver_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Bespoke(*arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps=0"),
        ({"iterations": 1.5}, ValueError, "iterations=1.5"),
        ({"lr": 0.0}, ValueError, "learning rate is positive"),
        ({"context": torch.zeros(3)}, ValueError, "is unconditional"),
    ],
)
def test_arguments_of_a_fit_are_checked(options, error, message):
    with pytest.raises(error, match=message):
        training.fit_bespoke(gaussian(paths.Linear()), **options)
    with pytest.raises(TypeError, match="ContinuousFlow"):
        training.fit_bespoke(nn.Linear(2, 2))


def test_names_say_where_a_fitted_solver_comes_from():
    assert solvers.Bespoke is Bespoke
    assert cflow.registry.lookup("solvers.Bespoke") is Bespoke
