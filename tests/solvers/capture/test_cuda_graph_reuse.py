"""Graphs of whole solves: when one serves again, how long it is kept, and what is refused."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from graph_standins import EXACT, Net, eager, same
from torch import nn

import cflow
from cflow import ContinuousFlow, bases, fields
from cflow.solvers import (
    CudaGraph,
    Dopri5,
    Euler,
    EulerMaruyama,
    Heun,
    Picard,
    TorchDiffEq,
    UniPC,
)
from cflow.solvers.capture import cuda_graph


def test_what_must_be_the_same_for_a_replay(machine):
    net, solver, y0 = Net(), CudaGraph(Heun(3), capacity=64), torch.ones(4, 2)
    shift = torch.ones(4, 2)
    variants = [
        ((net, y0, 0.0, 1.0), {}),
        ((net, torch.ones(5, 2), 0.0, 1.0), {}),
        ((net, y0.double(), 0.0, 1.0), {}),
        ((net, y0, 0.0, 0.5), {}),
        ((net, y0, 1.0, 0.0), {}),
        ((net, y0, 0.0, 1.0), {"args": (shift,)}),
        ((net, y0, 0.0, 1.0), {"args": (None,)}),
        ((net, y0, 0.0, 1.0), {"at": [0.5]}),
        ((net, y0, 0.0, 1.0), {"at": [0.25]}),
        ((Net(), y0, 0.0, 1.0), {}),
        ((net.double().float(), y0, 0.0, 1.0), {}),
    ]
    with torch.no_grad():
        for count, (arguments, options) in enumerate(variants[:2] + variants[3:10], 1):
            for _ in range(2):
                same(solver.solve(*arguments, **options), Heun(3).solve(*arguments, **options), **EXACT)
            assert solver.captures == count
        with torch.autocast("cpu", torch.bfloat16):
            for _ in range(2):
                same(solver.solve(net, y0, 0.0, 1.0), Heun(3).solve(net, y0, 0.0, 1.0), **EXACT)
        assert solver.captures == 10
        net.eval()
        solver.solve(net, y0, 0.0, 1.0)
        assert solver.captures == 11
        net.gain = 2.0
        same(solver.solve(net, y0, 0.0, 1.0), Heun(3).solve(net, y0, 0.0, 1.0), **EXACT)
        assert solver.captures == 12
        other = solver.around(Euler(3))
        same(other.solve(net, y0, 0.0, 1.0), Euler(3).solve(net, y0, 0.0, 1.0), **EXACT)
        solver.solve(net, y0, 0.0, 1.0)
        assert solver.captures == other.captures == 13


def test_parameters_changed_in_place_are_seen_and_replaced_ones_captured_anew(machine):
    net, y0 = Net(), torch.ones(4, 2)
    for solver in (CudaGraph(Heun(3)), CudaGraph(Dopri5())):
        with torch.no_grad():
            before = solver.solve(net, y0, 0.0, 1.0).y
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        net(torch.zeros(4), y0).sum().backward()
        optimizer.step()
        with torch.no_grad():
            after = solver.solve(net, y0, 0.0, 1.0)
            assert solver.captures == 1
            assert not torch.equal(before, after.y)
            same(after, eager(solver.solver, net, y0, 0.0, 1.0), **EXACT)
            net.weight = nn.Parameter(net.weight + 1)
            same(solver.solve(net, y0, 0.0, 1.0), eager(solver.solver, net, y0, 0.0, 1.0), **EXACT)
        assert solver.captures == 2


def test_a_number_on_the_host_is_part_of_what_must_be_the_same():
    scale = torch.tensor(2.0)
    field = lambda t, y: scale * y
    before = cuda_graph._held(field, torch.device("cuda"))
    scale.add_(1)
    assert cuda_graph._held(field, torch.device("cuda")) != before
    here = cuda_graph._held(field, torch.device("cpu"))
    scale.add_(1)
    assert cuda_graph._held(field, torch.device("cpu")) == here


@torch.no_grad()
def test_graphs_are_bounded_and_hold_what_they_read(machine):
    solver, y0 = CudaGraph(Euler(2), capacity=2), torch.ones(1, 2)
    nets = [Net() for _ in range(3)]
    for net in (nets[0], nets[1], nets[0], nets[2], nets[0]):  # the second is the one not used for longest
        solver.solve(net, y0, 0.0, 1.0)
    assert (solver.captures, machine.settled) == (3, 1)
    alive = [weakref.ref(net) for net in nets]
    del net, nets
    gc.collect()
    assert [each() is not None for each in alive] == [True, False, True]
    solver.clear()
    gc.collect()
    assert [each() is not None for each in alive] == [False] * 3


@torch.no_grad()
def test_many_solves_leave_nothing_behind(machine):
    net, y0 = Net(), torch.ones(4, 2)

    def live():
        gc.collect()
        return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())

    for solver in (CudaGraph(Euler(3)), CudaGraph(Dopri5(check_every=2)), CudaGraph(Dopri5(max_steps=5))):
        solver.solve(net, y0, 0.0, 1.0)
        before = live()
        for _ in range(20):
            solver.solve(net, y0, 0.0, 1.0)
        assert live() <= before
        assert solver.captures == 1


@torch.no_grad()
def test_results_are_not_written_over(machine):
    net = Net()
    for solver in (CudaGraph(Heun(3)), CudaGraph(Dopri5())):
        first = solver.solve(net, torch.ones(4, 2), 0.0, 1.0, at=[0.0, 1.0])
        kept = copy.deepcopy((first.y, first.trajectory, first.stats.reached, first.status))
        solver.solve(net, torch.full((4, 2), torch.nan), 0.0, 1.0, at=[0.0, 1.0])
        for mine, before in zip((first.y, first.trajectory, first.stats.reached, first.status), kept):
            assert torch.equal(mine, before)


@torch.no_grad()
def test_inference_mode_and_others_share_a_graph(machine):
    net, y0, solver = Net(), torch.ones(4, 2), CudaGraph(Heun(3))
    with torch.inference_mode():
        inside = solver.solve(net, torch.ones(4, 2), 0.0, 1.0).y
        assert inside.is_inference()
    outside = solver.solve(net, y0, 0.0, 1.0).y
    assert not outside.is_inference()
    assert torch.equal(inside, outside)
    assert solver.captures == 1


@torch.no_grad()
def test_copies_and_files_carry_options_alone(machine, tmp_path):
    solver = CudaGraph(Heun(3), capacity=2)
    solver.solve(Net(), torch.ones(4, 2), 0.0, 1.0)
    for other in (copy.copy(solver), copy.deepcopy(solver), pickle.loads(pickle.dumps(solver))):
        assert other == solver
        assert (other.captures, solver.captures) == (0, 1)
    assert cflow.registry.configuration(solver) == {"solver": Heun(3), "capacity": 2}
    flow = ContinuousFlow(fields.MLP(2, hidden=(4,)), bases.Normal(2), solver=solver)
    cflow.save(flow, tmp_path / "flow")
    assert cflow.load(tmp_path / "flow").solver == solver
    assert repr(solver) == "CudaGraph(solver=Heun(steps=3), capacity=2)"


REFUSED = [
    (lambda: CudaGraph(Euler), TypeError, "CudaGraph: solver=.* is not a solver"),
    (lambda: CudaGraph(CudaGraph(Euler(2))), ValueError, "captured already"),
    (lambda: CudaGraph(EulerMaruyama(2)), ValueError, "noise"),
    (lambda: CudaGraph(Picard(4)), ValueError, "after each round"),
    (lambda: CudaGraph(TorchDiffEq("dopri5")), ValueError, "may read values"),
    (lambda: CudaGraph(Euler(2), capacity=0), ValueError, "1 or more"),
]


@pytest.mark.parametrize(("make", "kind", "message"), REFUSED)
def test_solvers_that_cannot_be_captured(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def test_solves_that_cannot_be_captured(machine):
    net, y0, solver = Net(), torch.ones(2, 2), CudaGraph(Heun(2))
    plain = lambda t, y: -y
    with pytest.raises(ValueError, match="f refers to requires gradients"):
        solver.solve(net, y0, 0.0, 1.0)
    with pytest.raises(ValueError, match="y0 requires gradients"):
        solver.solve(plain, y0.clone().requires_grad_(), 0.0, 1.0)
    with pytest.raises(ValueError, match="args requires gradients"):
        solver.solve(lambda t, y, z: z, y0, 0.0, 1.0, args=(y0.clone().requires_grad_(),))
    with pytest.raises(ValueError, match="params requires gradients"):
        solver.solve(plain, y0, 0.0, 1.0, params=tuple(net.parameters()))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(ValueError, match="forward-mode"):
        solver.solve(plain, y0, 0.0, 1.0)
    with pytest.raises(ValueError, match="is on meta and y0 on cpu"):
        solver.solve(lambda t, y, z: -y, y0, 0.0, 1.0, args=(y0.to("meta"),))
    with pytest.raises(ValueError, match="stores no intermediate states"):
        CudaGraph(Dopri5()).solve(plain, y0, 0.0, 1.0, at=[0.5])
    with pytest.raises(ValueError, match="manifold"):
        solver.solve(plain, y0, 0.0, 1.0, manifold=object())
    with pytest.raises(ValueError, match="built with|path=None"):
        CudaGraph(UniPC(4)).solve(plain, y0, 0.0, 1.0)
    assert solver.solve(plain, y0, 0.0, 1.0).y.shape == (2, 2)  # gradients are enabled, and nothing needs any


@pytest.mark.parametrize(
    "field",
    [
        lambda t, y: -y * y.sum().item(),
        lambda t, y: -y if (t > 0.5).all() else y,
        lambda t, y: -y * y[0].tolist()[0],
        lambda t, y: y * torch.tensor([1.0, 2.0]),
    ],
    ids=["item", "bool", "tolist", "upload"],
)
@torch.no_grad()
def test_a_field_that_reads_or_uploads(field, machine):
    with pytest.raises(RuntimeError, match=r"cannot be captured \(operation not permitted.*use the solver itself"):
        CudaGraph(Heun(2)).solve(field, torch.ones(2, 2), 0.0, 1.0)


@torch.no_grad()
def test_a_field_that_changes_itself(machine):
    seen = []
    with pytest.raises(ValueError, match="a replay runs no Python"):
        CudaGraph(Heun(2)).solve(lambda t, y: seen.append(1) or -y, torch.ones(2, 2), 0.0, 1.0)

    class Lazy(Net):
        table = None

        def forward(self, t, y):
            if self.table is None:
                self.table = torch.full((2,), 2.0)
            return self.table * y

    net, solver = Lazy(), CudaGraph(Heun(2))
    for _ in range(3):  # what is made once, at the first call, is made while warming up
        solver.solve(net, torch.ones(2, 2), 0.0, 1.0)
    assert solver.captures == 1


def test_a_cpu_is_refused_with_what_to_do():
    flow = ContinuousFlow(fields.MLP(2, hidden=(4,)), bases.Normal(2))
    with pytest.raises(ValueError, match=r"y0 is on cpu, and only GPU kernels can be captured; use Euler\(steps"):
        flow.sample((3,), solver=CudaGraph(Euler(2)))


@torch.no_grad()
def test_nothing_to_do_takes_no_graph(machine):
    solver = CudaGraph(Heun(2))
    assert torch.equal(solver.solve(lambda t, y: -y, torch.ones(2, 2), 0.5, 0.5).y, torch.ones(2, 2))
    assert solver.solve(lambda t, y: -y, torch.ones(0, 2), 0.0, 1.0).y.shape == (0, 2)
    assert solver.captures == machine.replays == 0
