"""Training cells of densities on manifolds for ``earth_density.py`` and ``torus.py``: equal time, exact densities."""

import copy
import math
import time

BATCH, CHECKS, CHECK = 256, 12, 800
RATE = 2e-3


def train(flow, objective, parts, seconds, seed):
    """Trains for some seconds of processor time; keeps the averaged weights of the best validation log-density.

    Validation counts within the time. Returns the number of steps and of the step that is kept.
    """
    import torch

    from cflow import solvers, training
    from cflow.training.ema import Average

    torch.manual_seed(seed)
    judge = solvers.RK4(steps=16)
    mean = lambda x: float(flow.log_prob(x, solver=judge).mean())
    train, validation = parts["train"], parts["validation"][:CHECK]
    optimizer = torch.optim.Adam(flow.parameters(), lr=RATE)
    average = Average(flow, training.EMA())
    begun, step, best, kept, at, last = time.process_time(), 0, -math.inf, None, 0, 0.0
    while (spent := time.process_time() - begun) < seconds:
        if spent - last > seconds / CHECKS:
            last = spent
            with average.applied(), torch.no_grad():
                score = mean(validation)
                if score > best:
                    best, kept, at = score, copy.deepcopy(flow.state_dict()), step
        for group in optimizer.param_groups:
            group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * spent / seconds))
        rows = torch.randint(len(train), (min(BATCH, len(train)),))
        loss = objective(flow, train[rows]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
        optimizer.step()
        average.update()
        step += 1
    average.copy_to_module()
    with torch.no_grad():
        if mean(validation) < best:
            flow.load_state_dict(kept)
        else:
            at = step
    return step, at


def tested(flow, x):
    """Gives exact held-out nats in float64 with their error, and how much they move with the tolerance."""
    import torch

    from cflow import solvers

    flow, x = flow.double().eval(), x.double()
    with torch.no_grad():
        scores = torch.cat([flow.log_prob(part, solver=solvers.Dopri5(1e-6, 1e-6)) for part in x.split(1000)])
        finer = flow.log_prob(x[:200], solver=solvers.Dopri5(1e-8, 1e-8))
    return {
        "nats": float(scores.mean()),
        "error": float(scores.std() / math.sqrt(len(scores))),
        "moved": abs(float((finer - scores[:200]).mean())),
    }
