"""Samples of trained token flows against the number of network calls, and the variance of their bound."""

import math
import statistics
from pathlib import Path

import cells
import tokens_models as models
import torch

from cflow import ctmc, solvers
from cflow.ctmc.losses import nats_per_time

SEEDS = (0, 1, 2)
EXACT = {
    "Euler": lambda n: ctmc.Euler(n),
    "Analytic": lambda n: ctmc.Analytic(n),
    "Analytic, eta 5": lambda n: ctmc.Analytic(n, rate=ctmc.DetailedBalance(5.0)),
    "PredictorCorrector": lambda n: ctmc.PredictorCorrector(ctmc.Analytic(max(1, n // 2))),
    "FirstHitting": lambda n: ctmc.FirstHitting(together=max(1, models.LENGTH // n)),
    "Analytic, TimeReversal": lambda n: ctmc.Analytic(n, rate=ctmc.TimeReversal()),
}
HEURISTIC = {
    "Ordered, confidence": lambda n: ctmc.Ordered(n),
    "Analytic, temperature 0.8": lambda n: ctmc.Analytic(n, temperature=0.8),
    "Analytic, greedy end": lambda n: ctmc.Analytic(n, greedy_end=True),
}
SAMPLERS = EXACT | HEURISTIC
NOT_FOR = {"mask": ("Analytic, TimeReversal",), "uniform": ("FirstHitting", "Ordered, confidence")}
NOT_FOR |= dict.fromkeys(models.RELAXED, set(SAMPLERS) - {"Euler"})
"""Samplers that a source has not, or has twice: with a mask both rates are the same. ODEs have Euler's method."""


def jobs(text, calls, kinds, names):
    """Lists the cells, few calls first, so that a table is whole as far as it goes."""
    return [
        (text, kind, name, n, seed)
        for n in sorted(calls)
        for kind in kinds
        for name in names
        if name not in NOT_FOR[kind] and not (name == "FirstHitting" and n > models.LENGTH)
        for seed in SEEDS
    ]


def entropy(tokens, size):
    """Computes the entropy of single characters, in nats."""
    share = torch.bincount(tokens.flatten(), minlength=size).double() / tokens.numel()
    return float(-torch.special.xlogy(share, share).sum())


def distinct(tokens):
    """Computes the number of different 4-grams over that of all."""
    grams = tokens.unfold(1, 4, 1).reshape(-1, 4)
    return len(grams.unique(dim=0)) / len(grams)


def draw(text, kind, name, calls, seed, *, folder, rows, out, models_of):
    """Draws samples, keeps them, and counts the function evaluations."""
    _, held, alphabet = models.text(text, folder)
    flow = models.load(Path(models_of), text, kind, alphabet.size)
    counted = []
    if kind in models.RELAXED:  # the last call is that of the tokens
        network, how = flow.field, {"solver": solvers.Euler(grid=models.grid(kind, alphabet.size, calls - 1))}
    else:
        network, how = flow.denoiser, {"sampler": SAMPLERS[name](calls)}
    network.register_forward_hook(lambda *_: counted.append(1))
    x = flow.sample((rows,), generator=torch.Generator().manual_seed(seed), **how)
    file = Path(out) / "samples" / ("_".join(map(str, (text, kind, name, calls, seed))) + ".pt")
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(x, file)
    away = entropy(x, alphabet.size) - entropy(held, alphabet.size)
    return {"entropy": away, "distinct": distinct(x), "calls": len(counted), "file": str(file)}


def judged(out, text, job, judge):
    """Returns bits per character of the samples of a cell under the judge; kept beside the cell."""
    kept = cells.read(out, *job, "judged")
    if kept is None and judge is not None:
        x = torch.load(cells.read(out, *job)["file"])
        with torch.no_grad():
            bits = torch.cat([models.per_row(judge.surprise(part).sum(1)) for part in x.split(64)])
        kept = {"bits": float(bits.mean())}
        cells.write(out, (*job, "judged"), kept, {"judge": "autoregressive"})
    return None if kept is None else kept["bits"]


def table(out, models_of, text, calls, kinds, names, folder, rows):
    """Prints bits under the judge / entropy minus that of the text / distinct 4-grams, and the checks."""
    _, held, alphabet = models.text(text, folder)
    judge = models.load(models_of, text, "autoregressive", alphabet.size)
    if judge is not None:
        with torch.no_grad():
            bits = torch.cat([models.per_row(judge.surprise(part).sum(1)) for part in held.split(64)])
        grams = distinct(held[:rows])
        print(f"\n{text}: held-out text {float(bits.mean()):.3f} bits, distinct 4-grams of {rows} rows {grams:.3f}")
    for kind in kinds:
        found = {}
        for _, _, name, n, seed in (job for job in jobs(text, calls, (kind,), names)):
            cell = cells.read(out, text, kind, name, n, seed)
            if cell is not None:
                bits = judged(out, text, (text, kind, name, n, seed), judge)
                found.setdefault((name, n), []).append((bits, cell["entropy"], cell["distinct"], cell["calls"]))
        print(f"\n{kind}: bits under the judge / entropy away / distinct 4-grams (mean±deviation of seeds)")
        for (name, n), seeds in found.items():
            bits, away, grams, made = zip(*seeds)
            said = " / ".join(cells.shown(cells.over_seeds(each)) for each in (bits, away, grams))
            mark = " (heuristic)" if name in HEURISTIC else ""
            print(f"{name + mark:40s}{n:6d} ({made[0]} calls)   {said}")
        check(kind, found)


def check(kind, found):
    """Prints whether the analytic step is nowhere worse than Euler's by more than the spread of the seeds."""
    for n in sorted({n for _, n in found}):
        if ("Euler", n) not in found or ("Analytic", n) not in found:
            continue
        ours, euler = found["Analytic", n], found["Euler", n]
        for what, value in (("bits", lambda each: each[0]), ("entropy distance", lambda each: abs(each[1]))):
            if any(value(each) is None for each in (*ours, *euler)):
                continue
            a, b = ([value(each) for each in seeds] for seeds in (ours, euler))
            spread = max(max(a) - min(a), max(b) - min(b))
            worse = statistics.mean(a) - statistics.mean(b)
            verdict = "PASS" if worse <= spread else "FAIL"
            print(
                f"{verdict}  {kind}, {n} calls: Analytic - Euler in {what} {worse:+.4f}, spread of seeds {spread:.4f}"
            )
        if n >= 64:
            away = abs(statistics.mean(each[1] for each in ours))
            print(
                f"{'PASS' if away <= 0.05 else 'FAIL'}  {kind}, {n} calls: entropy distance {away:.4f} (at most 0.05)"
            )


@torch.no_grad()
def variance(models_of, text, folder, kind, rows=8, draws=256):
    """Prints the standard deviation of one draw of the bound, in bits per character, for one network call."""
    _, held, alphabet = models.text(text, folder)
    flow = models.load(models_of, text, kind, alphabet.size)
    if flow is None:
        return
    generator = torch.Generator().manual_seed(0)

    def independent(x):
        t = torch.rand(len(x), generator=generator, dtype=torch.float64)
        noisy = torch.rand(x.shape, generator=generator, dtype=torch.float64) >= t.unsqueeze(1)
        xt = torch.where(noisy, flow.source.sample((len(x),), generator=generator), x)
        return nats_per_time(flow.path, flow.predict(t, xt), xt, x, t, flow.path.default_rate).sum(1)

    ways = {
        "independent uniform times": (independent, 1),
        "numbers of noisy tokens": (lambda x: -flow.log_prob(x, generator=generator), 1),
        "complementary pairs": (lambda x: -flow.log_prob(x, generator=generator, antithetic=True), 2),
    }
    print(f"\n{text}, {kind}: bound of {rows} rows, {draws} draws of each, bits per character")
    print(f"{'':36s}{'mean':>8s}{'deviation of a draw':>22s}{'for one call':>14s}{'largest draw':>14s}")
    for name, (one, calls) in ways.items():
        values = torch.stack(
            [models.per_row(torch.cat([one(x.expand(64, -1)) for _ in range(draws // 64)])) for x in held[:rows]]
        )
        deviation = float(values.double().var(1).mean().sqrt())
        print(
            f"{name:36s}{float(values.mean()):8.3f}{deviation:22.3f}{deviation * math.sqrt(calls):14.3f}"
            f"{float(values.max()):14.2f}"
        )
