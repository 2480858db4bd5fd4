"""The same classical flows in cflow, zuko, nflows and normflows: equal layers, widths, bins and activations.

Each maker gives ``(log_prob, sample, parameters)``: ``log_prob(x) -> [B]`` with a graph, ``sample(count)`` without.
Peers that cannot be imported are left out. zuko switches off the validation of torch's distributions on import.
"""

import torch

from cflow import discrete

try:
    import zuko
except ImportError:
    zuko = None
try:
    import nflows.distributions
    import nflows.flows
    import nflows.nn.nets
    import nflows.transforms
except ImportError:
    nflows = None
try:
    import normflows
except ImportError:
    normflows = None

KINDS = ("affine coupling", "affine autoregressive", "spline coupling", "spline autoregressive")
BINS, BOUND = 8, 5.0


def of_cflow(kind, features, hidden, layers):
    presets = {
        "affine coupling": lambda: discrete.realnvp(features, layers=layers, hidden=hidden),
        "affine autoregressive": lambda: discrete.maf(features, layers=layers, hidden=hidden),
    }
    spline = lambda: discrete.nsf(
        features, layers=layers, hidden=hidden, bins=BINS, autoregressive="auto" in kind, linear=False
    )
    flow = presets.get(kind, spline)()
    return flow.log_prob, lambda count: flow.sample((count,)), list(flow.parameters())


def of_zuko(kind, features, hidden, layers):
    options = {"transforms": layers, "hidden_features": hidden}
    if kind == "affine coupling":
        flow = zuko.flows.RealNVP(features, **options)
    elif kind == "affine autoregressive":
        flow = zuko.flows.MAF(features, **options)
    elif kind == "spline autoregressive":
        flow = zuko.flows.NSF(features, bins=BINS, **options)
    else:
        layer = lambda i: zuko.flows.GeneralCouplingTransform(
            features,
            mask=torch.arange(features) % 2 == i % 2,
            univariate=zuko.transforms.MonotonicRQSTransform,
            shapes=[(BINS,), (BINS,), (BINS - 1,)],
            hidden_features=hidden,
        )
        loc, scale = torch.zeros(features), torch.ones(features)
        base = zuko.lazy.UnconditionalDistribution(zuko.distributions.DiagNormal, loc=loc, scale=scale, buffer=True)
        flow = zuko.flows.Flow([layer(i) for i in range(layers)], base)

    @torch.no_grad()
    def sample(count):
        return flow().sample((count,))

    return (lambda x: flow().log_prob(x)), sample, list(flow.parameters())


def of_nflows(kind, features, hidden, layers):
    transforms, width = nflows.transforms, hidden[0]
    masked = {"num_blocks": len(hidden) - 1, "use_residual_blocks": False}
    spline = {"num_bins": BINS, "tails": "linear", "tail_bound": BOUND}

    def network(inputs, outputs):
        made = nflows.nn.nets.MLP((inputs,), (outputs,), list(hidden), activation=torch.relu)
        made.forward = lambda x, context=None, forward=made.forward: forward(x)  # couplings hand on a context
        return made

    def layer(i):
        mask = torch.arange(features) % 2 == i % 2
        if kind == "affine coupling":
            return transforms.AffineCouplingTransform(mask, network)
        if kind == "affine autoregressive":
            return transforms.MaskedAffineAutoregressiveTransform(features, width, **masked)
        if kind == "spline coupling":
            return transforms.PiecewiseRationalQuadraticCouplingTransform(mask, network, **spline)
        kind_of = transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform
        return kind_of(features, width, **spline, **masked)

    members = []
    for i in range(layers):
        members += [layer(i), *([transforms.ReversePermutation(features)] if "auto" in kind else [])]
    base = nflows.distributions.StandardNormal([features])
    flow = nflows.flows.Flow(transforms.CompositeTransform(members), base)

    @torch.no_grad()
    def sample(count):
        return flow.sample(count)

    return flow.log_prob, sample, list(flow.parameters())


def of_normflows(kind, features, hidden, layers):
    flows, width = normflows.flows, hidden[0]

    def layer(i):
        if kind == "affine coupling":
            sizes = [(features + 1) // 2, *hidden, 2 * (features // 2)]
            return [
                flows.AffineCouplingBlock(normflows.nets.MLP(sizes, init_zeros=True)),
                flows.Permute(features, "swap"),
            ]
        if kind == "affine autoregressive":
            return [
                flows.MaskedAffineAutoregressive(features, width, num_blocks=len(hidden) - 1, use_residual_blocks=False)
            ]
        spline = flows.AutoregressiveRationalQuadraticSpline if "auto" in kind else flows.CoupledRationalQuadraticSpline
        return [spline(features, 1, width, num_bins=BINS, tail_bound=BOUND)]  # one residual block: two layers

    flow = normflows.NormalizingFlow(
        normflows.distributions.DiagGaussian(features), [b for i in range(layers) for b in layer(i)]
    )

    @torch.no_grad()
    def sample(count):
        return flow.sample(count)[0]

    return flow.log_prob, sample, list(flow.parameters())


def makers():
    """Lists name -> maker of the libraries that are here, ours first."""
    found = {"cflow": of_cflow}
    for name, library, maker in (
        ("zuko", zuko, of_zuko),
        ("nflows", nflows, of_nflows),
        ("normflows", normflows, of_normflows),
    ):
        if library is not None:
            found[name] = maker
    return found


def unsettled(parameters, scale=0.02):
    """Moves weights a little off their start, where splines are the identity and ends of networks zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for each in parameters:
            each.add_(scale * torch.randn(each.shape, generator=generator))
