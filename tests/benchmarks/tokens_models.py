"""Models of text that are compared in ``tokens.py``: one network, trained by each objective for the same time.

A model is ``(network, loss, score)``: ``loss(rows)`` is minimised, and ``score(rows)`` returns the bits of each row by
every name of a likelihood or bound that the model has.
"""

import copy
import math
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from cflow import RelaxedFlow, bases, ctmc, data, divergence, fields, objectives, paths, solvers, times

try:
    from flow_matching.loss import MixturePathGeneralizedKL
    from flow_matching.path import MixtureDiscreteProbPath
    from flow_matching.path.scheduler import PolynomialConvexScheduler
except ImportError:
    MixturePathGeneralizedKL = None

TEXTS = {"tinyshakespeare": "tinyshakespeare.txt", "enwiki206": "enwiki206_text8style.txt"}
LENGTH, SIZES = 256, {"width": 64, "depth": 4, "heads": 4}
LR, CLIP, WARM = 3e-3, 1.0, 0.05
HELD_OUT = 400
"""Rows that are tested, the first of the last tenth of a text."""
RELAXED = ("one-hot", "dirichlet")
FEWER = dict.fromkeys(RELAXED, 64)
"""Models of which fewer rows are tested: every draw of their bound takes an ODE."""


def text(name, folder):
    """Returns training windows at every position, held-out rows without overlap, and the alphabet."""
    written = (Path(folder) / "text" / TEXTS[name]).read_text(encoding="utf-8")
    alphabet = data.Characters("".join(sorted(set(written))))
    tokens = alphabet.encode(written)
    cut = len(tokens) * 9 // 10
    return data.windows(tokens[:cut], LENGTH, 1), data.windows(tokens[cut:], LENGTH)[:HELD_OUT], alphabet


def network(states, vocabulary, **options):
    return fields.TokenDiT(LENGTH, states, vocabulary, **{**SIZES, **options})


class Autoregressive(torch.nn.Module):
    """The causal transformer: token i given those before it, from a start token of its own."""

    def __init__(self, vocabulary):
        super().__init__()
        self.net = network(vocabulary + 1, vocabulary, causal=True, reads_time=False)
        self.start = vocabulary

    def surprise(self, rows):
        """Computes ``-log p`` of every token ``[B, L]``, in nats."""
        before = torch.cat([torch.full_like(rows[:, :1], self.start), rows[:, :-1]], 1)
        logits = self.net(torch.zeros(()), before)
        return F.cross_entropy(logits.mT, rows, reduction="none")


def flow_of(net, source, path):
    return ctmc.TokenFlow(net, source, path=path)


class Cut(torch.nn.Module):
    """A peer's network, which also has a logit for the mask, as a denoiser of the data's tokens."""

    def __init__(self, net, vocabulary):
        super().__init__()
        self.net, self.vocabulary = net, vocabulary

    def forward(self, t, x, context=None, *, s=None):
        return self.net(t, x)[..., : self.vocabulary]


def per_row(nats):
    return nats / (LENGTH * math.log(2))


def bound(flow, draws, **options):
    return lambda rows: per_row(-flow.log_prob_estimate(rows, draws=draws, **options)[0])


def ours(name, size, draws):
    """Mask and uniform sources. The bound has the tight rate in both."""
    if "mask" in name:
        schedule = ctmc.Cosine() if "cosine" in name else ctmc.Linear()
        source, path = ctmc.Mask(LENGTH, size), ctmc.Mixture(schedule)
    else:
        head = "denoiser" if "denoiser" in name else "leave-one-out"
        source, path = ctmc.Uniform(LENGTH, size), ctmc.Mixture(ctmc.Linear(), head=head)
    flow = flow_of(network(source.states, size), source, path)
    objective = objectives.FlowMatching()
    return flow, lambda rows: objective(flow, rows).mean(), {"bound": bound(flow, draws)}


class Scaled(fields.RelaxedTokens):
    """The network at K times the points of a simplex, whose entries then have mean and deviation 1 at the start.

    At the points alone, of which the entries are about 1 / K, the network learns much slower.
    """

    def forward(self, t, x, context=None, *, s=None):
        return super().forward(t, x * x.shape[-1], context, s=s)


def relaxed(name, size, draws):
    """Continuous flows over the tokens: Gaussian noise on one-hot vectors, or Dirichlet distributions."""
    net = (Scaled if name == "dirichlet" else fields.RelaxedTokens)(network(size, size))
    if name == "dirichlet":
        flow = RelaxedFlow(net, bases.Simplex(net.event_shape), path=paths.Dirichlet())
        law = times.Exponential(2 / flow.path.maximum)
    else:
        flow = RelaxedFlow(net, bases.Normal(net.event_shape), path=paths.Linear("logits"))
        law = times.ArgmaxClock(size)
    objective = objectives.FlowMatching(times=law)
    ends = [flow.end_time * t for t in times.power_grid(16, 1.5)]  # with more steps the bound moves by less than 0.01
    options = {"solver": solvers.RK4(grid=tuple(ends)), "divergence": divergence.Hutchinson()}
    return (
        flow,
        lambda rows: objective(flow, rows).mean(),
        {"bound": lambda rows: per_row(-flow.log_prob(rows, **options))},
    )


def grid(name, size, steps):
    """Returns times of sampling: for one-hot tokens, those at which equal numbers of tokens become visible."""
    return times.quantile_grid(steps, times.ArgmaxClock(size)) if name == "one-hot" else times.uniform_grid(steps)


def autoregressive(name, size, draws):
    model = Autoregressive(size)
    loss = lambda rows: model.surprise(rows).mean()
    return model, loss, {"exact": lambda rows: per_row(model.surprise(rows).sum(1))}


def peers(name, size, draws):
    """flow_matching's example of text: its path, losses and likelihood, as ``logic/`` of that example calls them."""
    masked, kl = "mask" in name, "KL" in name
    states = size + 1 if masked else size
    net = network(states, states)
    path = MixtureDiscreteProbPath(PolynomialConvexScheduler(n=1.0))
    criterion = MixturePathGeneralizedKL(path) if kl else torch.nn.CrossEntropyLoss()
    each = MixturePathGeneralizedKL(path, reduction="none")
    start = lambda rows: torch.full_like(rows, size) if masked else torch.randint_like(rows, size)

    def loss(rows):
        t = torch.rand(len(rows)) * (1.0 - (1e-3 if kl else 0.0))
        noisy = path.sample(t=t, x_0=start(rows), x_1=rows)
        logits = net(noisy.t, noisy.x_t)
        if kl:
            return criterion(logits=logits, x_1=rows, x_t=noisy.x_t, t=noisy.t)
        return criterion(logits.flatten(0, 1), rows.flatten(0, 1))

    def theirs(rows):
        total = torch.zeros(len(rows))
        times = (torch.arange(draws)[:, None] / draws + torch.rand(1, len(rows))) % 1 * (1 - 1e-3)
        for t in times:
            x = path.sample(t=t, x_0=start(rows), x_1=rows).x_t
            total += each(logits=net(t, x), x_1=rows, x_t=x, t=t).sum(1)
        return per_row(total / draws)

    source = (ctmc.Mask if masked else ctmc.Uniform)(LENGTH, size)
    flow = flow_of(Cut(net, size), source, ctmc.Mixture(ctmc.Linear()))
    return net, loss, {"bound": bound(flow, draws), "its own": theirs}


MAKERS = {"autoregressive": autoregressive}
MAKERS |= dict.fromkeys(("mask", "mask cosine", "uniform", "uniform denoiser"), ours)
MAKERS |= dict.fromkeys(RELAXED, relaxed)
if MixturePathGeneralizedKL is not None:
    MAKERS |= dict.fromkeys(("flow_matching mask", "flow_matching mask KL", "flow_matching uniform"), peers)


def build(name, size, draws=8):
    torch.manual_seed(0)
    return MAKERS[name](name, size, draws)


def train(module, loss, windows, seconds, batch):
    """Trains for some seconds of processor time: AdamW, warm-up and cosine over the time; returns steps and losses."""
    decayed = [each for each in module.parameters() if each.dim() > 1]
    other = [each for each in module.parameters() if each.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.03}, {"params": other, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), fused=True)
    begun, step, history = time.process_time(), 0, []
    while (spent := time.process_time() - begun) < seconds:
        share = spent / seconds
        rate = LR * min(1.0, share / WARM) * 0.5 * (1 + math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = rate
        value = loss(windows[torch.randint(len(windows), (batch,))])
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), CLIP)
        optimizer.step()
        history.append(value.item())
        step += 1
    tenth = max(1, step // 10)
    return step, [sum(history[k : k + tenth]) / tenth for k in range(0, tenth * 10, tenth)]


@torch.no_grad()
def tested(scores, rows):
    """Returns mean and standard error over rows of every score, in bits per character."""
    found = {}
    for name, score in scores.items():
        values = torch.cat([score(part) for part in rows.split(64)]).double()
        found[name] = [float(values.mean()), float(values.std()) / len(values) ** 0.5]
    return found


def kept(out, text_name, name):
    return out / "models" / f"{text_name}_{name.replace(' ', '_')}.pt"


def save(module, file):
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(copy.deepcopy(module.state_dict()), file)


def load(out, text_name, name, size):
    """Returns a trained model, or None where its cell has not been computed."""
    file = kept(out, text_name, name)
    if not file.exists():
        return None
    module, _, _ = build(name, size)
    module.load_state_dict(torch.load(file))
    return module.eval()
