"""Measures both solvers of the optimal coupling, which set its rule; run by hand: python tests/benchmarks/couplings.py.

Times are medians in milliseconds on one thread, costs included. "plain" is SciPy on the costs as they come, rows from
x0. The last column is torchcfm's sampler of pairs, where that package is installed.
"""

import statistics
import sys
import time

import torch
from scipy.optimize import linear_sum_assignment

from cflow.couplings import OptimalTransport, optimal

try:
    from torchcfm.optimal_transport import OTPlanSampler
except ImportError:
    OTPlanSampler = None


def median(call, repeats):
    call()
    spans = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        spans.append(1e3 * (time.perf_counter() - start))
    return statistics.median(spans)


def plain(x0, x1):
    return linear_sum_assignment(optimal._squared_distances(x0, x1)[0])


def main(sizes):
    torch.set_num_threads(1)
    print(f"{'d':>5} {'spread':>6} {'B':>5} {'POT':>8} {'SciPy':>8} {'plain':>8} {'ours':>8} {'torchcfm':>8}")
    for dimension in (2, 3, 50, 784, 3072):
        for spread in (0.5, 3.0):  # of the data, around a base of spread one
            for count in sizes:
                generator = torch.Generator().manual_seed(count)
                x0 = torch.randn(count, dimension, generator=generator)
                x1 = 1 + spread * torch.randn(count, dimension, generator=generator)
                calls = [OptimalTransport("simplex"), OptimalTransport("assignment"), plain, OptimalTransport()]
                if OTPlanSampler is not None:
                    calls.append(OTPlanSampler("exact").sample_plan)
                repeats = 7 if count <= 256 else 3
                spans = [f"{median(lambda call=call: call(x0, x1), repeats):8.2f}" for call in calls]  # noqa: B023
                print(f"{dimension:5d} {spread:6.1f} {count:5d}", *spans, flush=True)


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]] or [64, 128, 256, 512, 1024])
