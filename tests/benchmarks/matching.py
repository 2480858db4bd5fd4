"""The whole training step, sampling and its result: cflow beside torchcfm and flow_matching, with one network for all.

    OMP_NUM_THREADS=1 python tests/benchmarks/matching.py                     # all parts
    OMP_NUM_THREADS=1 python tests/benchmarks/matching.py --parts sampling    # also step, transport, quality

``step`` and ``transport``: time of a training step with independent pairs and with exact optimal transport. The peers
have no trainer, so theirs is the loop that their examples show: draw rows and noise, let the library make t, x_t and
the target, AdamW. Rows come from one tensor by random indices (their examples' samplers and loaders cost more); the
optimizer is fused everywhere; nothing is read from the device. ``cflow fit`` is ``training.fit`` as it is: it also
clips, checks every loss and gradient, keeps a history, and prepares ahead of the step in a thread. ``bare loop`` uses
no library; its distance from ``cflow fit`` is what the trainer costs. Set-up is not counted: all times
run from one step to a later one.

``sampling``: 100 steps of Euler's method. torchcfm's examples use torchdyn's NeuralODE or torchdiffeq.

``quality``: W2 of 8 gaussians after the same number of steps from the same weights, for pairs drawn with replacement
(torchcfm) and one to one (cflow); the same loop otherwise, fit without clipping, average or schedule.

Rounds alternate. A ratio is that of a method's time to cflow's in the same round: above one, cflow is faster. ``CPU``
is the processor time of all threads of the process: a plan made ahead takes none of the step's time, but a core's.
"""

import argparse
import copy
import statistics
import time

import numpy
import torch
from torch import nn

import cflow
from cflow import bases, couplings, data, fields, metrics, objectives, paths, solvers, training

try:
    import torchcfm.conditional_flow_matching as torchcfm
except ImportError:
    torchcfm = None
try:
    from flow_matching.path import AffineProbPath
    from flow_matching.path.scheduler import CondOTScheduler
    from flow_matching.solver import ODESolver
    from flow_matching.utils import ModelWrapper
except ImportError:
    AffineProbPath = None
    ModelWrapper = nn.Module
try:
    from torchdyn.core import NeuralODE
except (ImportError, RuntimeError):  # the latter where torchvision was made for another torch
    NeuralODE = None
try:
    from torchdiffeq import odeint
except ImportError:
    odeint = None

LR = 1e-3


class Net(nn.Module):
    """The network of torchcfm's examples in the plane: three layers of 64 SELU units, time as one more input."""

    def __init__(self, features=2, width=64):
        super().__init__()
        layers = []
        for before in (features + 1, width, width):
            layers += [nn.Linear(before, width), nn.SELU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, features))

    def forward(self, t, x):
        t = t.expand(len(x)) if t.dim() == 0 else t
        return self.layers(torch.cat([x, t[:, None]], 1))


class Wrapped(ModelWrapper):
    """The network as flow_matching calls it."""

    def forward(self, x, t, **extras):
        return self.model(t, x)


class Dynamics(nn.Module):
    """The network as torchdyn calls it."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, t, x, args=None):
        return self.net(t, x)


def network(kind, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "mlp":
            return Net()
        net = fields.UNet(1, 8, width=16, attention=())
        for parameter in net.parameters():  # what starts at zero would multiply zeros
            if not bool(parameter.any()):
                nn.init.normal_(parameter, std=0.02)
        return net


def rows(kind, count=10_000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if kind == "mlp":
        return data.toys.eight_gaussians(count, generator=generator)
    images = data.digits().train.float() / 8 - 1
    return images + torch.rand(images.shape, generator=generator) / 8


def as_flow(net, x):
    """Gives cflow's view of the network; its own U-Net needs none."""
    if not isinstance(net, fields.Field):
        net = fields.Adapted(net, lambda net, t, x, context: net(t, x), event_shape=x.shape[1:])
    return cflow.ContinuousFlow(net, bases.Normal(x.shape[1:]), path=paths.Linear())


def state_dict_average(source, target, decay=0.999):
    """Averages weights as image examples do."""
    source, target = source.state_dict(), target.state_dict()
    for name in source:
        target[name].copy_(target[name] * decay + source[name] * (1 - decay))


# A batch of the peers and of the bare loop: (network, x0, x1) -> loss.


def bare_loss(net, x0, x1):
    t = torch.rand(len(x1))
    s = t.reshape(-1, *[1] * (x1.dim() - 1))
    return (net(t, x0 + s * (x1 - x0)) - (x1 - x0)).square().mean()


def torchcfm_loss(matcher):
    def loss(net, x0, x1):
        t, xt, ut = matcher.sample_location_and_conditional_flow(x0, x1)
        return (net(t, xt) - ut).square().mean()

    return loss


def flow_matching_loss():
    path = AffineProbPath(CondOTScheduler())

    def loss(net, x0, x1):
        sample = path.sample(x_0=x0, x_1=x1, t=torch.rand(len(x1)))
        return (net(sample.t, sample.x_t) - sample.dx_t).square().mean()

    return loss


def loop(net, x, batch, steps, loss_of, average=None, ticks=()):
    """Trains as the examples do; gives the times at ``ticks``."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=0.0, fused=True)
    times = []
    for step in range(1, steps + 1):
        x1 = x[torch.randint(len(x), (batch,))]
        x0 = torch.randn_like(x1)
        optimizer.zero_grad()
        loss = loss_of(net, x0, x1)
        loss.backward()
        optimizer.step()
        if average is not None:
            state_dict_average(net, average)
        if step in ticks:
            times.append((time.perf_counter(), time.process_time()))
    return times


def looped(kind, batch, loss_of, ema=False):
    def run(steps, warm):
        net, x = network(kind), rows(kind)
        average = copy.deepcopy(net) if ema else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return loop(net, x, batch, steps + warm, loss_of, average, ticks=(warm, warm + steps))

    return run


def fitted(kind, batch, coupling=None, ema=None, **options):
    def run(steps, warm):
        x = rows(kind)
        flow, times = as_flow(network(kind), x), []

        def look(step, flow, row):
            if step in (warm, warm + steps):
                times.append((time.perf_counter(), time.process_time()))

        training.fit(
            flow, objectives.FlowMatching(coupling), x, steps=steps + warm, batch_size=batch, lr=LR, ema=ema,
            callbacks=[look], log_every=max(50, steps + warm), **options,
        )  # fmt: skip
        return times

    return run


def compare(title, ways, ours, steps, rounds, warm=10):
    """Times all ways in turn, and prints them beside ``ours``."""
    wall, work, names = {name: [] for name in ways}, {name: [] for name in ways}, list(ways)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            (begun, used), (ended, spent) = ways[name](steps, warm)
            wall[name].append(1e3 * (ended - begun) / steps)
            work[name].append(1e3 * (spent - used) / steps)
    show(title, wall, ours, "ms a step", work)


def show(title, wall, ours, unit, work=None, calls=None):
    print(f"\n{title:38s}{unit:>10s}{'lowest to highest':>20s}{'ratio to cflow, quartiles':>30s}", end="")
    print(f"{'CPU ms':>9s}" * (work is not None) + f"{'calls':>7s}{'off by':>9s}" * (calls is not None))
    for name, each in wall.items():
        ratios = sorted(a / b for a, b in zip(each, wall[ours]))
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        spread = "" if name == ours else f"{middle:9.2f}  [{low:.2f}, {high:.2f}]"
        line = f"{name:38s}{statistics.median(each):10.3f}{f'{min(each):.3f} to {max(each):.3f}':>20s}{spread:>30s}"
        line += f"{statistics.median(work[name]):9.3f}" if work is not None else ""
        print(line + (f"{calls[name][0]:7d}{calls[name][1]:9.0e}" if calls is not None else ""), flush=True)


def step_part(asked):
    for kind, batch, steps in (("mlp", 256, asked.steps), ("unet", 128, max(8, asked.steps // 20))):
        ways = {"bare loop": looped(kind, batch, bare_loss)}
        if torchcfm is not None:
            matcher = torchcfm.ConditionalFlowMatcher(sigma=0.0)
            ways["torchcfm ConditionalFlowMatcher"] = looped(kind, batch, torchcfm_loss(matcher))
        if AffineProbPath is not None:
            ways["flow_matching AffineProbPath"] = looped(kind, batch, flow_matching_loss())
        ways["cflow fit"] = fitted(kind, batch)
        ways["cflow fit, prefetch=0"] = fitted(kind, batch, prefetch=0)
        compare(f"independent, {kind}, B = {batch}", ways, "cflow fit", steps, asked.rounds)
        averaged = {"bare loop, state-dict average": looped(kind, batch, bare_loss, ema=True)}
        if torchcfm is not None:
            averaged["torchcfm, state-dict average"] = looped(kind, batch, torchcfm_loss(matcher), ema=True)
        averaged["cflow fit, EMA (the default)"] = fitted(kind, batch, ema=training.EMA())
        compare(f"with averaged weights, {kind}", averaged, "cflow fit, EMA (the default)", steps, asked.rounds)


def transport_part(asked):
    for kind, batch, share in (("mlp", 128, 2), ("mlp", 256, 4), ("mlp", 512, 16), ("unet", 128, 20)):
        ways = {}
        if torchcfm is not None:
            matcher = torchcfm.ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)
            ways["torchcfm ExactOptimalTransport"] = looped(kind, batch, torchcfm_loss(matcher))
        ways["cflow fit"] = fitted(kind, batch, couplings.OptimalTransport())
        ways["cflow fit, prefetch=0"] = fitted(kind, batch, couplings.OptimalTransport(), prefetch=0)
        ways["cflow fit, independent"] = fitted(kind, batch)
        steps = max(8, asked.steps // share)
        compare(f"optimal transport, {kind}, B = {batch}", ways, "cflow fit", steps, asked.rounds)


def sampling_part(asked):
    for kind, batch in (("mlp", 64), ("mlp", 1024), ("unet", 16)):
        sampling_case(kind, batch, 3 * asked.rounds)


@torch.no_grad()
def sampling_case(kind, batch, rounds, steps=100):
    x, net = rows(kind), network(kind)
    shape = (batch, *x.shape[1:])
    flow, solver = as_flow(net, x).eval(), solvers.Euler(steps=steps)

    def bare(x0):
        for t in torch.linspace(0, 1, steps + 1)[:-1]:
            x0 = x0 + net(t.expand(len(x0)), x0) / steps
        return x0

    ways = {"bare loop": bare}
    if NeuralODE is not None:
        node, times = NeuralODE(Dynamics(net), solver="euler", sensitivity="adjoint"), torch.linspace(0, 1, steps + 1)
        ways["torchcfm: torchdyn NeuralODE"] = lambda x0: node.trajectory(x0, t_span=times)[-1]
    if odeint is not None:
        ends, options = torch.tensor([0.0, 1.0]), {"step_size": 1 / steps}
        ways["torchcfm: torchdiffeq odeint"] = lambda x0: odeint(net, x0, ends, method="euler", options=options)[-1]
    if AffineProbPath is not None:
        theirs = ODESolver(Wrapped(net))
        ways["flow_matching ODESolver"] = lambda x0: theirs.sample(x0, step_size=1 / steps, method="euler")
    # Results are compared from the same base samples; what is timed draws them.
    given = {**ways, "cflow flow.sample": lambda x0: flow.transport(x0, 0.0, 1.0, solver=solver).y}
    timed = {name: lambda way=way: way(torch.randn(shape)) for name, way in ways.items()}
    timed["cflow flow.sample"] = lambda: flow.sample((batch,), solver=solver)
    x0, calls, counted = torch.randn(shape), {}, []
    hook = net.register_forward_pre_hook(lambda *_: counted.append(1))
    wanted = bare(x0)
    for name, way in given.items():
        counted.clear()
        calls[name] = float((way(x0) - wanted).abs().max())
        calls[name] = len(counted), calls[name]
    hook.remove()
    wall, names = {name: [] for name in timed}, list(timed)
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            begun = time.perf_counter()
            timed[name]()
            if number:  # the first round warms up
                wall[name].append(1e3 * (time.perf_counter() - begun))
    show(f"{steps} Euler steps, {kind}, batch {batch}", wall, "cflow flow.sample", "ms", calls=calls)


def quality_part(asked, batch=256, count=2000):
    def torchcfm_way(matcher):
        def train(net, x, seed):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                numpy.random.seed(seed)  # noqa: NPY002 - torchcfm draws its pairs by NumPy's global generator
                loop(net, x, batch, asked.quality_steps, torchcfm_loss(matcher))

        return train

    def cflow_way(coupling, **options):
        def train(net, x, seed):
            training.fit(
                as_flow(net, x), objectives.FlowMatching(coupling), x, steps=asked.quality_steps, batch_size=batch,
                lr=LR, seed=seed, log_every=1000, **options,
            )  # fmt: skip

        return train

    same = {"ema": None, "clip": None, "schedule": training.Constant()}
    ways = {}
    if torchcfm is not None:
        ways["torchcfm independent"] = torchcfm_way(torchcfm.ConditionalFlowMatcher(sigma=0.0))
        exact = torchcfm.ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)
        ways["torchcfm optimal transport"] = torchcfm_way(exact)
    ways["cflow independent"] = cflow_way(None, **same)
    ways["cflow optimal transport"] = cflow_way(couplings.OptimalTransport(), **same)
    ways["cflow optimal transport, fit's defaults"] = cflow_way(couplings.OptimalTransport())
    found, floors = {name: [] for name in ways}, []
    for seed in range(3):
        x, y, z = (rows("mlp", size, 100 * seed + part) for part, size in enumerate((10_000, count, count)))
        floors.append(metrics.wasserstein2(y, z))
        for name, train in ways.items():
            net = network("mlp", seed)
            begun = time.process_time()
            train(net, x, seed)
            seconds = time.process_time() - begun
            flow, generator = as_flow(net, x), torch.Generator().manual_seed(seed)
            x0 = flow.base.sample((count,), generator=generator)
            kept = [seconds]
            with torch.no_grad():
                for steps in (2, 100):
                    made = flow.transport(x0, 0.0, 1.0, solver=solvers.Euler(steps=steps)).y
                    kept.append(metrics.wasserstein2(made, y))
            found[name].append(kept)
    title = f"8 gaussians, {asked.quality_steps} steps, three seeds"
    print(f"\n{title:42s}{'W2, Euler 2':>18s}{'W2, Euler 100':>18s}{'CPU s':>18s}")
    pair = lambda values: f"{statistics.mean(values):.3f}±{statistics.stdev(values):.3f}"
    for name, kept in found.items():
        seconds, *distances = zip(*kept)
        print(f"{name:42s}" + "".join(f"{pair(each):>18s}" for each in (*distances, seconds)))
    print(f"{'two true samples':42s}{pair(floors):>18s}{pair(floors):>18s}")


def main():
    parts = {"step": step_part, "transport": transport_part, "sampling": sampling_part, "quality": quality_part}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--steps", type=int, default=400, help="timed in each round; fewer where they are slow")
    parser.add_argument("--rounds", type=int, default=7, help="at least 2")
    parser.add_argument("--quality-steps", type=int, default=3000)
    asked = parser.parse_args()
    present = {
        "torchcfm": torchcfm, "flow_matching": AffineProbPath, "torchdyn": NeuralODE, "torchdiffeq": odeint
    }  # fmt: skip
    missing = [name for name, what in present.items() if what is None]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads" + f"; not there: {missing}" * bool(missing))
    for part in asked.parts:
        parts[part](asked)


if __name__ == "__main__":
    main()
