"""Whether flows of zuko and nflows, with their weights in our layers, have the same densities: to 1e-6 in float64.

    peers/bin/python tests/benchmarks/discrete_parity.py

Networks are copied weight by weight; what the libraries do with a network's output before their formula (soft clips,
other positive functions) is undone by a map of the raw numbers, so that masks, splines and log-determinants are
compared, each computed by its own code. Ends with an error where a difference is larger.
"""

import itertools
import math
import sys

import torch
from discrete_peers import BINS, nflows, unsettled, zuko
from torch import Tensor
from torch.nn.functional import softplus

from cflow import bases, discrete

FEATURES, CONTEXT, HIDDEN, LAYERS = 6, 2, (42, 42), 3
FLOOR = 1e-3


class Mapped(discrete.Univariate):
    """A family whose raw numbers are mapped first."""

    def __init__(self, family, function):
        super().__init__()
        self.family, self.function, self.size = family, function, family.size

    def encode(self, x: Tensor, raw: Tensor):
        return self.family.encode(x, self.function(raw))

    def decode(self, z: Tensor, raw: Tensor):
        return self.family.decode(z, self.function(raw))


def clipped(raw, factor=1.0):
    return raw / (1 + (factor * raw / math.log(FLOOR)).abs())


def of_slope(slope):
    """Gives the raw number of a slope above 1e-3: our slopes are 1e-3 + 0.999 log2(1 + 2^raw)."""
    return torch.log2(torch.expm1((slope - FLOOR) / (1 - FLOOR) * math.log(2)))


def unmixed(shares):
    """Gives softmax logits for shares that our families mix with the smallest one, 1e-9 here."""
    return shares.log()


def zuko_affine(raw):
    shift, scale = raw.unbind(-1)
    return torch.stack((clipped(scale), shift), -1)


def zuko_spline(raw):
    widths, heights, slopes = raw.split((BINS, BINS, BINS - 1), -1)
    shares = [clipped(each, 2.0).softmax(-1) for each in (widths, heights)]
    return torch.cat((*map(unmixed, shares), of_slope(clipped(slopes).exp())), -1)


def nflows_spline(raw):
    widths, heights, slopes = raw.split((BINS, BINS, BINS - 1), -1)
    shares = [FLOOR + (1 - FLOOR * BINS) * each.softmax(-1) for each in (widths, heights)]
    return torch.cat((*map(unmixed, shares), of_slope(FLOOR + softplus(slopes))), -1)


def spline(function):
    return Mapped(discrete.RationalQuadratic(BINS, minimum_bin=1e-12, minimum_slope=FLOOR), function)


def copy_dense(conditioner, layers):
    """Copies a plain network."""
    for mine, theirs in zip(conditioner.layers, layers, strict=True):
        mine.load_state_dict({"weight": theirs.weight, "bias": theirs.bias})


def copy_masked(conditioner, layers, inputs):
    """Copies a masked network of zuko, whose hidden units come in another order; ``inputs`` are its columns' order."""
    order, reach = torch.tensor(inputs), torch.eye(len(inputs), dtype=torch.float64)
    for i, (mine, theirs) in enumerate(zip(conditioner.layers, layers)):
        reach = ((theirs.mask.double() @ reach) > 0).double()  # which inputs each unit sees
        last = i == len(layers) - 1
        # Units that see more come later with us.
        rows = torch.arange(len(reach)) if last else reach.sum(1).argsort(stable=True)
        weight = (theirs.weight * theirs.mask)[rows][:, order]
        mine.load_state_dict({"weight": weight, "bias": theirs.bias[rows]})
        mask = getattr(conditioner, f"mask{i}")
        assert bool(((weight == 0) | (mask != 0)).all()), "a weight lies where our mask has none"
        order = rows


def linears(network):
    return [each for each in network.modules() if hasattr(each, "weight")]  # zuko has a layer of its own


def zuko_pair(autoregressive, univariate, function, family, **options):
    torch.manual_seed(0)
    masks = [torch.arange(FEATURES) % 2 == i % 2 for i in range(LAYERS)]
    if autoregressive:
        kind = zuko.flows.MAF if univariate is None else zuko.flows.NSF
        theirs = kind(FEATURES, CONTEXT, transforms=LAYERS, hidden_features=HIDDEN, **options).double()
    else:
        extra = {} if univariate is None else {"univariate": univariate, "shapes": [(BINS,), (BINS,), (BINS - 1,)]}
        made = [
            zuko.flows.GeneralCouplingTransform(FEATURES, CONTEXT, mask=mask, hidden_features=HIDDEN, **extra)
            for mask in masks
        ]
        numbers = {"loc": torch.zeros(FEATURES), "scale": torch.ones(FEATURES)}
        base = zuko.lazy.UnconditionalDistribution(zuko.distributions.DiagNormal, **numbers, buffer=True)
        theirs = zuko.flows.Flow(made, base).double()
    unsettled(theirs.parameters(), 0.3)
    members = []
    for i, layer in enumerate(theirs.transform.transforms):
        mapped = Mapped(family(), function)
        if autoregressive:
            order = list(range(FEATURES))[:: 1 if i % 2 == 0 else -1]
            mine = discrete.Autoregressive(mapped, FEATURES, context=CONTEXT, order=order, hidden=HIDDEN).double()
            columns = [*range(FEATURES, FEATURES + CONTEXT), *range(FEATURES)]
            copy_masked(mine.conditioner, linears(layer.hyper), columns)
        else:
            moves = [not stays for stays in masks[i].tolist()]
            mine = discrete.Coupling(mapped, FEATURES, context=CONTEXT, mask=moves, hidden=HIDDEN).double()
            copy_dense(mine.conditioner, linears(layer.hyper))
        members.append(mine)
    return members, lambda x, context: theirs(context).log_prob(x)


def nflows_pair():
    torch.manual_seed(0)
    masks = [torch.arange(FEATURES) % 2 == i % 2 for i in range(LAYERS)]

    class Network(torch.nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            widths = [inputs + CONTEXT, *HIDDEN, outputs]
            self.layers = torch.nn.ModuleList(torch.nn.Linear(a, b) for a, b in itertools.pairwise(widths))

        def forward(self, x, context=None):
            x = torch.cat((x, context), -1)
            for layer in self.layers[:-1]:
                x = torch.relu(layer(x))
            return self.layers[-1](x)

    kind = nflows.transforms.PiecewiseRationalQuadraticCouplingTransform
    layers = [kind(mask, Network, num_bins=BINS, tails="linear", tail_bound=5.0) for mask in masks]
    base = nflows.distributions.StandardNormal([FEATURES])
    theirs = nflows.flows.Flow(nflows.transforms.CompositeTransform(layers), base).double()
    unsettled(theirs.parameters(), 0.3)
    members = []
    for layer, mask in zip(layers, masks):
        mapped = spline(nflows_spline)
        mine = discrete.Coupling(mapped, FEATURES, context=CONTEXT, mask=mask.tolist(), hidden=HIDDEN).double()
        copy_dense(mine.conditioner, linears(layer.transform_net))
        members.append(mine)
    return members, lambda x, context: theirs.log_prob(x, context)


def main():
    affine = lambda: discrete.Affine(math.inf)
    free = lambda: discrete.RationalQuadratic(BINS, minimum_bin=1e-12, minimum_slope=FLOOR)
    cases = {}
    if zuko:
        rqs = zuko.transforms.MonotonicRQSTransform
        cases["zuko, affine autoregressive"] = lambda: zuko_pair(True, None, zuko_affine, affine)
        cases["zuko, affine coupling"] = lambda: zuko_pair(False, None, zuko_affine, affine)
        cases["zuko, spline coupling"] = lambda: zuko_pair(False, rqs, zuko_spline, free)
        cases["zuko, spline autoregressive"] = lambda: zuko_pair(True, rqs, zuko_spline, free, bins=BINS)
    if nflows:
        cases["nflows, spline coupling"] = nflows_pair
    generator = torch.Generator().manual_seed(1)
    x = 2 * torch.randn(500, FEATURES, generator=generator, dtype=torch.float64)
    context = torch.randn(500, CONTEXT, generator=generator, dtype=torch.float64)
    worst = 0.0
    for name, case in cases.items():
        members, log_prob = case()
        flow = discrete.NormalizingFlow(discrete.Compose(*members), bases.Normal(FEATURES)).double()
        with torch.no_grad():
            mine, theirs = flow.log_prob(x, context), log_prob(x, context)
            gap = float(((mine - theirs).abs() / (1 + theirs.abs())).max())
        worst = max(worst, gap)
        print(f"{name:32s} mean log-density {float(theirs.mean()):10.4f}, relative difference {gap:.1e}")
    if not worst < 1e-6:
        sys.exit(f"a difference of {worst:.1e}: more than 1e-6")


if __name__ == "__main__":
    main()
