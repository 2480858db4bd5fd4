"""Two tokens that determine each other: what samplers of exact networks do in few steps, computed without draws.

The distribution of a step follows from ``path.step``'s own rule, ``rate.move``: the next state of a token is a function
of one uniform number, constant between a few points, which bisection finds. Steps are then products of matrices.
"""

import itertools

import torch

from cflow import RelaxedFlow, bases, ctmc, solvers
from cflow.testing import ExactDenoiser, RelaxedTokenField

STEPS = (1, 2, 4, 8, 16, 64)
CELLS, HALVINGS = 4096, 40
PAIR = torch.eye(2, dtype=torch.float64) / 2
UNEQUAL = torch.diag(torch.tensor([0.6, 0.4]))


def theory(rule, steps):
    """Computes the probability of an impossible pair from the formulas of the literature, with a uniform source.

    ``rule`` is "minimal" (a token becomes one of the posterior p at the pace of the schedule), "bridge" (Bayes' rule
    with the leave-one-out posterior l) or "plugged" (the same rule with p in the place of l).
    """
    law = torch.full((2, 2), 0.25, dtype=torch.float64)
    same = torch.eye(2, dtype=torch.float64)
    for k in range(steps):
        t, s = k / steps, (k + 1) / steps
        channel = t * same + (1 - t) / 2
        new = torch.zeros_like(law)
        for x in itertools.product(range(2), repeat=2):
            rows = []
            for mine, other in (x, x[::-1]):
                loo = channel[:, other] / channel[:, other].sum()
                p = loo * channel[:, mine]
                p = p / p.sum()
                if rule == "minimal":
                    stays = (1 - s) / (1 - t)
                    row = stays * same[mine] + (1 - stays) * p
                else:
                    row = (t / s * same[mine] + (1 - t / s) / 2) * (s * (p if rule == "plugged" else loo) + (1 - s) / 2)
                rows.append(row / row.sum())
            new += law[x] * rows[0].unsqueeze(1) * rows[1]
        law = new
    return float(law[0, 1] + law[1, 0])


def transition(path, rate, logits, x, t, s):
    """Computes the probabilities ``[X, states, states]`` of the next two tokens of states ``x [X, 2]``."""

    def after(u, rows):
        posterior = path.posterior(logits[rows], x[rows], t)
        return rate.move(path, posterior, path.spread(t, x[rows]), path.spread(s, x[rows]), u)

    # The grid is finer at small numbers, and before the probability that a token changes at all.
    small = torch.logspace(-9, 0, CELLS, dtype=torch.float64)
    last = rate.odds(path.schedule, t, s)[0] * (1 - small) if hasattr(rate, "odds") else small
    grid = torch.cat([torch.zeros(1, dtype=torch.float64), small, last]).clamp(max=1 - 1e-16).unique()
    rows = torch.arange(len(x)).repeat_interleave(len(grid))
    found = after(grid.repeat(len(x)).unsqueeze(1).expand(-1, 2), rows).reshape(len(x), -1, 2)
    row, cell, place = (found[:, 1:] != found[:, :-1]).nonzero().unbind(1)
    low, high, first = grid[cell], grid[cell + 1], found[row, cell, place]
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        now = after(middle.unsqueeze(1).expand(-1, 2), row).gather(1, place.unsqueeze(1)).squeeze(1)
        low, high = torch.where(now == first, middle, low), torch.where(now == first, high, middle)
    table = torch.zeros(2, len(x), path.source.states, dtype=torch.float64)
    for which in range(2):
        for k in range(len(x)):
            here = (row == k) & (place == which)
            ends = [0.0, *low[here].tolist(), 1.0]
            states = [*first[here].tolist(), int(found[k, -1, which])]
            for state, begin, end in zip(states, ends, ends[1:]):
                table[which, k, state] += end - begin
    return table[0].unsqueeze(2) * table[1].unsqueeze(1)


def impossible(source, rate, steps, plugged):
    """Computes the probability that the two tokens differ at the end."""
    exact = ctmc.Mixture().bind(source)
    path = ctmc.Mixture(head="leave-one-out" if plugged else "denoiser").bind(source)
    network = ExactDenoiser(PAIR, source, exact)
    x = torch.tensor(list(itertools.product(range(source.states), repeat=2)))
    start = source.probs()
    law = (start.unsqueeze(1) * start).reshape(-1)
    with torch.no_grad():
        for k in range(steps):
            t, s = (torch.tensor(each / steps, dtype=torch.float64) for each in (k, k + 1))
            logits = network(t.expand(len(x)), x)
            law = law @ transition(path, rate, logits, x, t, s).reshape(len(x), -1)
    law = law.reshape(source.states, source.states)
    return float(law.sum() - law.diagonal().sum())


def one_hot(steps, count=20_000):
    """Draws pairs by Euler's method; returns the shares of impossible pairs and of the pair of 60 %."""
    field = RelaxedTokenField(UNEQUAL, lambda t, x: (t / (1 - t).square())[:, None, None] * x)
    flow = RelaxedFlow(field, bases.Normal((2, 2)))
    x = flow.sample((count,), solver=solvers.Euler(steps=steps), generator=torch.Generator().manual_seed(0))
    return float((x[:, 0] != x[:, 1]).double().mean()), float((x == 0).all(1).double().mean())


def show():
    mask, uniform = ctmc.Mask(2, 2), ctmc.Uniform(2, 2)
    ways = {
        "mask, Analytic": (mask, ctmc.MinimalJump(), False, None),
        "uniform, Analytic(MinimalJump)": (uniform, ctmc.MinimalJump(), False, "minimal"),
        "uniform, Analytic (TimeReversal)": (uniform, ctmc.TimeReversal(), False, "bridge"),
        "uniform, a denoiser plugged in as leave-one-out": (uniform, ctmc.TimeReversal(), True, "plugged"),
    }
    print(f"\n{'impossible pairs after steps:':50s}" + "".join(f"{steps:>9d}" for steps in STEPS) + f"{'off by':>10s}")
    for name, (source, rate, plugged, rule) in ways.items():
        found = [impossible(source, rate, steps, plugged) for steps in STEPS]
        known = [1 / (2 * steps) if rule is None else theory(rule, steps) for steps in STEPS]
        off = max(abs(a - b) for a, b in zip(found, known))
        print(f"{name:50s}" + "".join(f"{each:9.5f}" for each in found) + f"{off:10.1e}", flush=True)
    pairs = [one_hot(steps) for steps in STEPS]
    print(f"{'one-hot flow, Euler: impossible':50s}" + "".join(f"{each:9.5f}" for each, _ in pairs))
    print(f"{'one-hot flow, Euler: share of the pair of 60 %':50s}" + "".join(f"{each:9.3f}" for _, each in pairs))
