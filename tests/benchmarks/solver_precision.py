"""Work and precision: the error of a solve after so many function evaluations, in numbers and as curves."""

import math

import torch
from solver_peers import Counted, medians, ode, torchdiffeq

from cflow import solvers


def problems():
    """Gives ``name -> (field, y0, end)``: three in the manner of DETEST, and a flow between two mixtures."""
    rotation = torch.tensor([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.5], [0.0, -0.5, -0.1]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)

    def two_body(t, y):
        x, v = y[:, :2], y[:, 2:]
        return torch.cat((v, -x / x.norm(dim=1, keepdim=True) ** 3), 1)

    def mixture(t, x):
        # The exact velocity of the linear path from a normal to four narrow normals.
        t = t[:, None]
        centres = torch.tensor([[2.0, 0], [-2, 0], [0, 2], [0, -2]], dtype=x.dtype)
        variance = (1 - t) ** 2 + (0.3 * t) ** 2
        shift = x[:, None] - t[:, None] * centres
        weights = torch.softmax(-shift.square().sum(2) / (2 * variance), 1)[..., None]
        mean = (weights * (centres + (0.3**2 * t / variance)[:, None] * shift)).sum(1)
        noise = (weights * ((1 - t) / variance)[:, None] * shift).sum(1)
        return mean - noise

    bodies = torch.tensor([[1 - e, 0.0, 0.0, math.sqrt((1 + e) / (1 - e))] for e in (0.1, 0.3, 0.5)]).double()
    return {
        "two bodies": (two_body, bodies, 20.0),
        "nonlinear rotation": (
            lambda t, y: torch.tanh(y @ rotation) + 0.2 * torch.cos(2 * t)[:, None],
            torch.randn(16, 3, generator=generator, dtype=torch.float64),
            20.0,
        ),
        "logistic with seasons": (
            lambda t, y: y * (1 - y) * (1 + torch.sin(4 * t))[:, None],
            torch.rand(16, 1, generator=generator, dtype=torch.float64),
            10.0,
        ),
        "flow to a mixture": (mixture, torch.randn(64, 2, generator=generator, dtype=torch.float64), 1.0),
    }


def precision(options):
    """Prints calls, time and error over tolerances, and draws them."""
    rows = []
    for problem, (field, y0, end) in problems().items():
        with torch.no_grad():
            exact = solvers.Dopri8(1e-13, 1e-13).solve(field, y0, 0.0, end).y
        for power in range(3, 11):
            e = 10.0**-power
            calls = {
                f"cflow {kind.__name__}": lambda f, kind=kind, e=e: (
                    kind(e, e, per_sample=False).solve(f, y0, 0.0, end).y
                )
                for kind in (solvers.Bosh3, solvers.Dopri5, solvers.Tsit5, solvers.Dopri8)
                if kind is not solvers.Bosh3 or power < 7
            }
            if torchdiffeq:
                names = ("bosh3", "dopri5", "dopri8")[power > 6 :]
                for name in names:
                    calls[f"torchdiffeq {name}"] = lambda f, name=name, e=e: ode(f, y0, end, name, e)[-1]
            fields = {name: Counted(lambda t, y: field(t.expand(len(y)), y)) for name in calls}
            with torch.no_grad():
                spans, results = medians(
                    {name: lambda call=call, name=name: call(fields[name]) for name, call in calls.items()}, 3
                )
            for name in calls:
                error = (results[name] - exact).abs().max().item()
                rows.append((problem, name, power, fields[name].calls // 4, spans[name], error))
    for problem in problems():
        print(f"\n{problem + ': error after calls':32s}" + "".join(f"{f'1e-{power}':>18s}" for power in range(3, 11)))
        for name in dict.fromkeys(row[1] for row in rows):
            found = {row[2]: row for row in rows if row[:2] == (problem, name)}
            cells = (f"{found[p][5]:10.1e} {found[p][3]:6d} " if p in found else " " * 18 for p in range(3, 11))
            print(f"{name:32s}" + "".join(cells))
    if options.picture:
        draw(rows, options.picture)


def draw(rows, picture):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    names = list(problems())
    figure, axes = pyplot.subplots(1, len(names), figsize=(4 * len(names), 3.6), sharey=True, layout="constrained")
    colours = {"bosh3": "C0", "dopri5": "C1", "tsit5": "C2", "dopri8": "C3"}
    for axis, problem in zip(axes, names):
        for name in dict.fromkeys(row[1] for row in rows):
            found = [row for row in rows if row[:2] == (problem, name)]
            who, method = name.split()
            style = "-" if who == "cflow" else ":"
            axis.loglog(
                [row[3] for row in found], [row[5] for row in found], style, marker="o", markersize=3,
                color=colours[method.lower()], label=name,
            )  # fmt: skip
        axis.set_title(problem)
        axis.set_xlabel("function evaluations (NFE)")
        axis.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes[0].set_ylabel("largest error at the end")
    axes[0].legend(fontsize=7)
    figure.savefig(picture, dpi=110)
    print(f"drawn to {picture}")
