"""A Markov chain with the pairs of characters of a text: samples of a network that is exact, and long.

    CFLOW_DATA=FOLDER OMP_NUM_THREADS=1 python tests/benchmarks/tokens_chain.py

FOLDER holds ``text/tinyshakespeare.txt``. The leave-one-out posterior of 256 characters follows exactly by the
forward-backward algorithm. So what samples lose is the fault of the steps, not of a network: the entropy of single
characters minus that of the chain, and the nats per character under the chain minus its conditional entropy. The
uniform source; with 256 rows the entropy has a standard deviation of about 0.007.
"""

import argparse
import itertools
import os

import tokens_models as models
import torch

from cflow import ctmc


def chain(folder):
    """Returns the probabilities of the next character ``[K, K]``, and of one character ``[K]``."""
    windows, _, alphabet = models.text("tinyshakespeare", folder)
    tokens = windows[:: models.LENGTH].flatten()
    size = alphabet.size
    pairs = torch.bincount(tokens[:-1] * size + tokens[1:], minlength=size**2).double().reshape(size, size) + 0.01
    after = pairs / pairs.sum(1, keepdim=True)
    single = torch.full((size,), 1 / size, dtype=torch.float64)
    for _ in range(2000):
        single = single @ after
    return after, single


def leave_one_out(after, single, x, t):
    """Computes the logarithms of the posterior of every character given the others' noisy ones, ``[B, D, K]``."""
    size = len(single)
    given = (1 - t) / size + t * torch.nn.functional.one_hot(x, size)
    forward, backward = [single.expand(len(x), size)], [torch.ones(len(x), size, dtype=torch.float64)]
    for place in range(x.shape[1] - 1):
        message = (forward[-1] * given[:, place]) @ after
        forward.append(message / message.sum(-1, keepdim=True))
    for place in range(x.shape[1] - 1, 0, -1):
        message = (backward[-1] * given[:, place]) @ after.T
        backward.append(message / message.sum(-1, keepdim=True))
    return (torch.stack(forward, 1) * torch.stack(backward[::-1], 1)).clamp(min=1e-300).log()


def lost(after, single, rate, steps, rows):
    """Returns what samples lose in entropy of single characters, and in nats per character under the chain."""
    size, generator = len(single), torch.Generator().manual_seed(0)
    path = ctmc.Mixture(head="leave-one-out").bind(ctmc.Uniform(models.LENGTH, size))
    x = path.source.sample((rows,), generator=generator)
    grid = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    for t, s in itertools.pairwise(grid):
        x = path.step(leave_one_out(after, single, x, t), x, t, s, rate=rate, generator=generator)
    share = torch.bincount(x.flatten(), minlength=size).double() / x.numel()
    entropy = lambda p: -torch.special.xlogy(p, p).sum()
    surprise = -after.log()[x[:, :-1], x[:, 1:]].mean()
    conditional = -(single.unsqueeze(1) * torch.special.xlogy(after, after)).sum()
    return float(entropy(share) - entropy(single)), float(surprise - conditional)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("CFLOW_DATA"), help="Default: $CFLOW_DATA")
    parser.add_argument("--steps", nargs="+", type=int, default=[8, 16, 64])
    parser.add_argument("--rows", type=int, default=256)
    asked = parser.parse_args()
    if asked.data is None:
        parser.error("pass --data FOLDER, or set CFLOW_DATA")
    after, single = chain(asked.data)
    print(f"{'steps':>6s}  {'rate':16s}{'entropy':>10s}{'nats under the chain':>22s}")
    for steps in asked.steps:
        for rate in (ctmc.MinimalJump(), ctmc.TimeReversal()):
            entropy, nats = lost(after, single, rate, steps, asked.rows)
            print(f"{steps:6d}  {type(rate).__name__:16s}{entropy:+10.4f}{nats:+22.4f}", flush=True)


if __name__ == "__main__":
    main()
