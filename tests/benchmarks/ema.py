"""Times one update of the moving average of a 35 M parameter model with 304 tensors, in the same run:

ours (one fused lerp), a loop of ``lerp_`` over tensors, and the loop over state dicts that is common in examples.
Run by hand: ``python tests/benchmarks/ema.py [rounds]``.
"""

import statistics
import sys
import time

import torch
from torch import nn

from cflow.training.ema import EMA, Average


def model():
    """Sizes as in a small image U-Net: most tensors are short, most parameters sit in few of them."""
    wide = [nn.Parameter(torch.randn(256, 256, 3, 3)) for _ in range(56)]
    middle = [nn.Parameter(torch.randn(128, 128, 3)) for _ in range(40)]
    return nn.ParameterList([*wide, *middle, *(nn.Parameter(torch.randn(256)) for _ in range(208))])


def state_dict_loop(average, module, decay):
    source, target = module.state_dict(), average.state_dict()
    for name in source:
        target[name].data.copy_(target[name].data * decay + source[name].data * (1 - decay))


@torch.no_grad()
def lerp_loop(shadow, parameters, decay):
    for target, value in zip(shadow, parameters):
        target.lerp_(value, 1 - decay)


def main(rounds):
    module, other = model(), model()
    average = Average(module, EMA(0.999, warmup=False))
    shadow, parameters = [each.detach().clone() for each in module], list(module.parameters())
    ways = {
        "ours": average.update,
        "lerp_ loop": lambda: lerp_loop(shadow, parameters, 0.999),
        "state-dict loop": lambda: state_dict_loop(other, module, 0.999),
    }
    taken = {name: [] for name in ways}
    for _ in range(rounds + 2):
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            taken[name].append(1e3 * (time.perf_counter() - begun))
    count = sum(each.numel() for each in parameters) / 1e6
    print(f"{count:.1f} M parameters, {len(parameters)} tensors, {torch.get_num_threads()} threads, {rounds} rounds")
    print(f"{'':16} {'median ms':>10} {'quartiles ms':>16} {'ours is faster by':>18}")
    ours = statistics.median(taken["ours"][2:])
    for name, times in taken.items():
        low, middle, high = statistics.quantiles(times[2:], n=4)
        print(f"{name:16} {middle:10.1f} {low:8.1f}{high:8.1f} {middle / ours:17.2f}x")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 30)
