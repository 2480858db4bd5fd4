"""All fields of the package, small, and how to call the suite on each."""

import torch
from torch import nn

from cflow import paths
from cflow.fields import (
    MLP,
    Adapted,
    ConcatSquash,
    DiT,
    EndTime,
    FieldWrapper,
    MMDiT,
    PeriodicMLP,
    Potential,
    RelaxedTokens,
    TokenConv,
    TokenDiT,
    UNet,
    two_times,
)
from cflow.guidance import AutoGuidance, CFGZeroStar, ClassifierFree
from cflow.paths import Rescheduled
from cflow.testing import GaussianBridgeField, GaussianField

SMALL = {"patch": 2, "width": 8, "depth": 1, "heads": 2}


def adapted(**options):
    """A linear network of two features, three numbers of context and a time."""
    call = lambda net, t, x, c: net(torch.cat([x, t[:, None], x[:, :0] if c is None else c], 1))
    width = 3 if options.get("context_shape") is None else 6
    return Adapted(nn.Linear(width, 2), call, event_shape=(2,), **options)


def rescheduled(predict, to):
    trained = paths.Linear(predict)
    return Rescheduled(GaussianField(trained, 2, 0.7, 0.5), trained, to)


NETWORKS = {
    "mlp": lambda: MLP(3, hidden=(16, 8)),
    "mlp with classes": lambda: MLP(3, hidden=(16, 8), classes=4),
    "mlp with context": lambda: MLP(3, hidden=(16, 8), context=2),
    "periodic mlp": lambda: PeriodicMLP(3, hidden=(16, 8), harmonics=2),
    "concat squash": lambda: ConcatSquash(3, hidden=(16, 8)),
    "concat squash with classes": lambda: ConcatSquash(3, hidden=(16, 8), classes=4, skip=True),
    "concat squash with context": lambda: ConcatSquash(3, hidden=(16, 8), context=2),
    "potential": lambda: Potential(3, width=8, layers=3),
    "potential with classes": lambda: Potential(3, width=8, classes=4),
    "potential with context": lambda: Potential(3, width=8, layers=1, context=2),
    "unet": lambda: UNet(2, 4, width=8, multipliers=(1, 2), heads=2, blocks=1, attention=(4,)),
    "unet of two sides": lambda: UNet(1, (4, 6), width=8, multipliers=(1, 2), heads=2, blocks=1, attention=(4,)),
    "unet with classes": lambda: UNet(1, 4, width=8, multipliers=(1, 2), heads=2, blocks=2, classes=4),
    "unet with context": lambda: UNet(1, 4, width=8, multipliers=(1, 2), heads=2, blocks=1, attention=(), context=2),
    "dit": lambda: DiT(1, 4, patch=2, width=8, depth=1, heads=2, positions="sincos"),
    "dit of two sides": lambda: DiT(1, (4, 6), patch=2, width=8, depth=1, heads=2),
    "dit with classes": lambda: DiT(1, 4, patch=2, width=8, depth=2, heads=1, classes=4),
    "dit with context": lambda: DiT(2, 4, patch=2, width=8, depth=1, heads=2, context=2),
    "relaxed tokens": lambda: RelaxedTokens(TokenDiT(4, 3, 3, width=8, depth=1, heads=2)),
    "relaxed tokens with classes": lambda: RelaxedTokens(TokenConv(4, 3, 3, width=8, depth=1, classes=4)),
    "mmdit with context": lambda: MMDiT(1, 4, tokens=2, token_width=3, patch=2, width=8, depth=2, heads=2),
}
FIELDS = {
    **NETWORKS,
    "mlp with one feature": lambda: MLP(1, hidden=(8,)),
    "mlp of two times": lambda: MLP(2, hidden=(8, 8), two_times=True, classes=3),
    "periodic mlp of two times": lambda: PeriodicMLP(2, hidden=(8,), two_times=True, classes=3, period=1.0),
    "mlp with two heads": lambda: MLP(2, hidden=(8,), outputs=2),
    "mlp given a second time": lambda: two_times(MLP(2, hidden=(8,))),
    "unet of two times": lambda: UNet(1, 4, width=8, multipliers=(1,), heads=2, blocks=1, context=2, two_times=True),
    "dit of two times": lambda: DiT(1, 4, two_times=True, context=2, **SMALL),
    "mmdit of two sides": lambda: MMDiT(1, (2, 6), tokens=2, token_width=3, positions="sincos", **SMALL),
    "mmdit of two times": lambda: MMDiT(1, 4, tokens=2, token_width=3, two_times=True, **SMALL),
    "dit with two heads": lambda: DiT(1, 4, outputs=2, **SMALL),
    "adapted": adapted,
    "adapted with context": lambda: adapted(context_shape=(3,), null=torch.tensor([1.0, 2.0, 3.0])),
    "adapted without null": lambda: adapted(context_shape=(3,)),
    "end time": lambda: EndTime(MLP(2, hidden=(8,), classes=3), initial=0.7),
    "rescheduled noise": lambda: rescheduled("noise", paths.Cosine("x1")),
    "rescheduled velocity": lambda: rescheduled("velocity", paths.Cosine()),
    "gaussian": lambda: GaussianField(paths.Linear("x1"), (2, 3), 0.7, 0.5),
    "gaussian bridge": lambda: GaussianBridgeField(paths.BrownianBridge(), 2),
    "classifier-free": lambda: ClassifierFree(2.0, interval=(0.1, 0.9))(MLP(2, hidden=(8,), context=3)),
    "classifier-free of two times": lambda: ClassifierFree(2.0)(MLP(2, hidden=(8,), classes=3, two_times=True)),
    "zero star": lambda: CFGZeroStar(2.0, zero_until=0.0)(MLP(2, hidden=(8,), classes=3)),
    "auto guidance": lambda: AutoGuidance(MLP(2, hidden=(4,)), 2.0)(MLP(2, hidden=(8,), classes=3)),
}

UNSAVED = ("adapted", "classifier-free", "zero star", "auto")  # functions, and what a flow makes anew for every solve

OPTIONS = {name: {"saved": not name.startswith(UNSAVED)} for name in FIELDS}
OPTIONS["adapted without null"]["null"] = False


# Networks on tokens: four values and a mask.


class Tempered(FieldWrapper):
    """A wrapper around a denoiser that only forwards."""


def token_dit(**options):
    return TokenDiT(5, 5, 4, width=8, depth=2, heads=2, **options)


def token_conv(**options):
    return TokenConv(5, 5, 4, width=8, depth=3, kernel=3, **options)


def adapted_denoiser():
    network = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4))
    return Adapted(network, lambda net, t, x, c: net(x.long()) * t[:, None, None], event_shape=5)


DENOISERS = {
    "token dit": token_dit,
    "token dit with classes": lambda: token_dit(classes=4),
    "token dit with context": lambda: token_dit(context=2, self_conditioning=True),
    "token dit without time": lambda: token_dit(reads_time=False),
    "token dit without time with classes": lambda: token_dit(reads_time=False, classes=4),
    "token dit of earlier logits": lambda: token_dit(reads_time=False, self_conditioning=True),
    "token dit, causal": lambda: token_dit(causal=True, reads_time=False),
    "token dit, causal with classes": lambda: token_dit(causal=True, classes=4),
    "token conv": token_conv,
    "token conv with classes": lambda: token_conv(classes=4, dilations=(1, 2)),
    "token conv with context": lambda: token_conv(context=2, reads_time=False),
    "token conv of earlier logits": lambda: token_conv(self_conditioning=True),
    "one token": lambda: TokenConv(1, 5, 4, width=8, depth=1),
    "adapted denoiser": adapted_denoiser,
    "wrapped denoiser": lambda: Tempered(token_dit(self_conditioning=True, classes=4)),
}
