"""ODE solvers beside torchdiffeq, torchode and torchdyn: the cost of a step, whole solves at equal error, gradients.

    OMP_NUM_THREADS=1 peers/bin/python tests/benchmarks/solvers.py                      # all parts, some two minutes
    OMP_NUM_THREADS=1 peers/bin/python tests/benchmarks/solvers.py --parts step vdp
    OMP_NUM_THREADS=1 peers/bin/python tests/benchmarks/solvers.py --parts precision --picture assets/solvers.png

All methods of a part take turns in one run; times are medians over the rounds, ratios are to the time of the first line
of ours. Errors are against float64 solutions at 1e-12. Peers that cannot be imported are left out. What sampling from
a trained flow costs at equal quality is in ``solver_sampling.py``.
"""

import argparse
import collections
import warnings
from pathlib import Path

import torch
from solver_peers import Counted, medians, ode, torchdiffeq, torchdyn, torchode, torchode_solver
from solver_precision import precision

from cflow import solvers
from cflow.testing.solvers.operations import Operations

# The cost of a step


def step_calls(field, y0):
    """Lists ``name -> (call, steps of it)`` for solves of many steps with a field that costs nothing."""
    end, width = 10.0, 0.05
    count = round(end / width)
    grid = torch.linspace(0, end, count + 1)
    calls = {}
    for kind in (solvers.Euler, solvers.Heun, solvers.RK4):
        calls[kind.__name__.lower(), "cflow"] = lambda f, kind=kind: kind(count).solve(f, y0, 0.0, end)
    for kind in (solvers.Bosh3, solvers.Dopri5, solvers.Tsit5, solvers.Dopri8):
        for who, each in (("cflow joint", False), ("cflow per sample", True)):
            solver = kind(1e-3, 1e-3, per_sample=each, dt_max=width)
            calls[kind.__name__.lower(), who] = lambda f, solver=solver: solver.solve(f, y0, 0.0, end)
    if torchdiffeq:
        for name, theirs in (("euler", "euler"), ("heun", "heun2"), ("rk4", "rk4")):
            calls[name, "torchdiffeq"] = lambda f, theirs=theirs: torchdiffeq.odeint(f, y0, grid, method=theirs)
        for name in ("bosh3", "dopri5", "dopri8"):
            calls[name, "torchdiffeq"] = lambda f, name=name: ode(f, y0, end, name, 1e-3, max_step=width)
    if torchode:
        for name in ("dopri5", "tsit5"):

            def call(f, name=name):
                ends = torch.zeros(len(y0)), torch.full((len(y0),), end)
                problem = torchode.InitialValueProblem(y0, *ends)
                return torchode_solver(f, name, 1e-3, dt_max=width).solve(problem)

            calls[name, "torchode"] = call
    if torchdyn:
        for name in ("euler", "rk4"):
            calls[name, "torchdyn"] = lambda f, name=name: torchdyn.odeint(f, y0, grid, solver=name)
        for name in ("dopri5", "tsit5"):  # it takes no largest step: a tolerance that asks for some twenty
            options = {"solver": name, "atol": 1e-6, "rtol": 1e-6}
            calls[name, "torchdyn"] = lambda f, options=options: torchdyn.odeint(f, y0, grid[[0, -1]], **options)
    return calls


STAGES = {"euler": 1, "heun": 2, "rk4": 4, "bosh3": 3, "dopri5": 6, "tsit5": 6, "dopri8": 13}


def step(options):
    """Prints time, operations and host reads of a step of a trivial field."""
    y0 = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    field = lambda t, y: torch.sin(y)
    calls = step_calls(field, y0)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spans, _ = medians({key: lambda call=call: call(field) for key, call in calls.items()}, options.rounds)
        print(f"\n{'a step, state [64, 8]':32s}{'us':>8}{'operations':>12}{'reads':>7}{'over ours':>11}")
        for name in STAGES:
            first = None
            for (method, who), call in calls.items():
                if method != name:
                    continue
                counted = Counted(field)
                with Operations() as operations:
                    call(counted)
                steps = counted.calls / STAGES[name]
                span = 1e6 * spans[method, who] / steps
                first = first or span
                launched = (operations.counts.total() - operations.counts["sin"]) / steps
                print(
                    f"{method + ' ' + who:32s}{span:8.1f}{launched:12.1f}{operations.reads / steps:7.1f}"
                    f"{span / first:11.2f}"
                )


# A small neural ODE


def neural(options):
    """Prints value and gradient of diffrax's benchmark: 64 states of 4 entries, a network of 32, up to t = 100."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.Softplus(), torch.nn.Linear(32, 4), torch.nn.Tanh())
    field = lambda t, y: network(y)
    y0 = torch.randn(64, 4)
    ours = {
        f"cflow {kind.__name__} {who}": kind(1e-6, 1e-6, per_sample=who == "per sample", gradient=gradient())
        for kind in (solvers.Dopri5, solvers.Tsit5)
        for who, gradient in (("joint", solvers.Backprop), ("per sample", solvers.Backprop))
    }
    ours["cflow Dopri5 joint, checkpointed"] = solvers.Dopri5(
        1e-6, 1e-6, per_sample=False, gradient=solvers.Checkpointed()
    )
    weights = tuple(network.parameters())
    calls = {
        name: lambda solver=solver: solver.solve(field, y0, 0.0, 100.0, params=weights).y
        for name, solver in ours.items()
    }
    if torchdiffeq:
        calls["torchdiffeq dopri5"] = lambda: ode(field, y0, 100.0, "dopri5", 1e-6)[-1]
        times = torch.tensor([0.0, 100.0])
        calls["torchdiffeq dopri5, adjoint"] = lambda: torchdiffeq.odeint_adjoint(
            field, y0, times, rtol=1e-6, atol=1e-6, method="dopri5", adjoint_params=weights
        )[-1]
    if torchode:
        ends = torch.zeros(64), torch.full((64,), 100.0)
        for name in ("dopri5", "tsit5"):
            calls[f"torchode {name}"] = lambda name=name: (
                torchode_solver(field, name, 1e-6).solve(torchode.InitialValueProblem(y0, *ends)).ys[:, -1]
            )

    def value(call):
        with torch.no_grad():
            return call()

    def gradient(call):
        network.zero_grad()
        call().square().sum().backward()

    rounds = max(3, options.rounds // 2)
    exact_network = torch.nn.Sequential(*[type(each)(*_shape(each)) for each in network]).double()
    exact_network.load_state_dict(network.state_dict())
    with torch.no_grad():
        exact = solvers.Dopri8(1e-12, 1e-12).solve(lambda t, y: exact_network(y), y0.double(), 0.0, 100.0).y
    values, results = medians({name: lambda call=call: value(call) for name, call in calls.items()}, rounds)
    gradients, _ = medians({name: lambda call=call: gradient(call) for name, call in calls.items()}, rounds)
    print(f"\n{'small neural ODE, tolerance 1e-6':38s}{'value ms':>10}{'error':>10}{'with gradient ms':>18}")
    for name in calls:
        error = (results[name].double() - exact).abs().max().item()
        print(f"{name:38s}{1e3 * values[name]:10.1f}{error:10.1e}{1e3 * gradients[name]:18.1f}")


def _shape(layer):
    return (layer.in_features, layer.out_features) if isinstance(layer, torch.nn.Linear) else ()


# Van der Pol oscillators of different stiffness


def van_der_pol(t, y, mu):
    x, v = y.unbind(1)
    return torch.stack((v, mu * (1 - x * x) * v - x), 1)


def vdp(options):
    """Prints time and error for batches of oscillators, mu from 0.5 to 20, up to t = 10."""
    for count in (64, 1024):
        mu = torch.linspace(0.5, 20.0, count, dtype=torch.float64)
        y0 = torch.tensor([[2.0, 0.0]], dtype=torch.float64).expand(count, 2).contiguous()
        with torch.no_grad():
            exact = solvers.Dopri8(1e-12, 1e-12).solve(van_der_pol, y0, 0.0, 10.0, args=(mu,)).y
        print(f"\n{f'Van der Pol, {count} of them':32s}" + "".join(f"{f'tolerance {e:.0e}':>26s}" for e in TOLERANCES))
        lines = collections.defaultdict(str)
        for tolerance in TOLERANCES:
            solve = lambda solver, mu=mu, y0=y0: solver.solve(van_der_pol, y0, 0.0, 10.0, args=(mu,)).y
            calls = {
                "cflow Dopri5 per sample": lambda e=tolerance: solve(solvers.Dopri5(e, e)),
                "cflow Tsit5 per sample": lambda e=tolerance: solve(solvers.Tsit5(e, e)),
                "cflow Dopri5 joint": lambda e=tolerance: solve(solvers.Dopri5(e, e, per_sample=False)),
            }
            bound = lambda t, y, mu=mu: van_der_pol(t, y, mu)
            if torchdiffeq:
                calls["torchdiffeq dopri5"] = lambda e=tolerance: ode(bound, y0, 10.0, "dopri5", e)[-1]
            if torchode:
                ends = torch.zeros(count, dtype=torch.float64), torch.full((count,), 10.0, dtype=torch.float64)
                for name in ("dopri5", "tsit5"):
                    calls[f"torchode {name}"] = lambda name=name, e=tolerance: (
                        torchode_solver(bound, name, e).solve(torchode.InitialValueProblem(y0, *ends)).ys[:, -1]
                    )
            with torch.no_grad():
                spans, results = medians(calls, 3)
            for name in calls:
                error = (results[name] - exact).abs().mean().item()
                lines[name] += f"{1e3 * spans[name]:9.0f} ms {error:8.1e} {spans[name] / spans[next(iter(calls))]:5.2f}"
        for name, line in lines.items():
            print(f"{name:32s}{line}")
    print("(time, mean error, ratio of times to the first line)")


TOLERANCES = (1e-3, 1e-5, 1e-7)


# Gradients


def graph_bytes(call):
    """Counts the bytes that a graph keeps for its backward pass: distinct storages handed to autograd."""
    seen = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()
    total = sum(seen.values())
    return total, result


def gradient(options):
    """Prints time, kept memory and error of one gradient through 10, 100 and 1000 steps of RK4."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Tanh(), torch.nn.Linear(64, 8)).double()
    field = lambda t, y: network(y)
    y0 = torch.randn(64, 8, dtype=torch.float64)
    weights = tuple(network.parameters())
    print(f"\n{'gradient of RK4, N steps':32s}{'N':>6}{'ms':>10}{'kept MB':>10}{'error':>10}")
    for steps in (10, 100, 1000):
        solve = lambda solver: solver.solve(field, y0, 0.0, 1.0, params=weights).y
        calls = {
            "cflow Backprop": lambda n=steps: solve(solvers.RK4(n)),
            "cflow Checkpointed": lambda n=steps: solve(solvers.RK4(n, gradient=solvers.Checkpointed())),
        }
        if torchdiffeq:
            grid = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
            calls["torchdiffeq odeint"] = lambda grid=grid: torchdiffeq.odeint(field, y0, grid, method="rk4")[-1]
            calls["torchdiffeq odeint_adjoint"] = lambda n=steps: torchdiffeq.odeint_adjoint(
                field, y0, torch.tensor([0.0, 1.0], dtype=torch.float64), method="rk4",
                options={"step_size": 1 / n}, adjoint_params=weights,
            )[-1]  # fmt: skip

        def run(call):
            network.zero_grad()
            call().square().sum().backward()
            return torch.cat([weight.grad.flatten() for weight in weights])

        spans, results = medians({name: lambda call=call: run(call) for name, call in calls.items()}, 3)
        for name, call in calls.items():
            kept, _ = graph_bytes(call)
            reference = results["torchdiffeq odeint"] if name.startswith("torchdiffeq") else results["cflow Backprop"]
            error = ((results[name] - reference).norm() / reference.norm()).item()
            print(f"{name:32s}{steps:6d}{1e3 * spans[name]:10.1f}{kept / 2**20:10.2f}{error:10.1e}")
    print("(errors are relative, against backpropagation through the same method)")


PARTS = {each.__name__: each for each in (step, neural, vdp, precision, gradient)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--picture", type=Path, help="where the work-precision curves are drawn")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in options.parts:
        PARTS[name](options)


if __name__ == "__main__":
    main()
