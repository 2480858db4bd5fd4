"""The suite for divergences sees what is wrong with one, one defect at a time."""

from dataclasses import dataclass

import pytest
import torch

from cflow.divergence import Divergence, Exact, Hutchinson
from cflow.testing import check_divergence


class Changed(Divergence):
    """Calls a right divergence; what is wrong is overridden."""

    def __init__(self, inner=None):
        self.inner = Hutchinson() if inner is None else inner
        self.exact, self.frobenius = self.inner.exact, self.inner.frobenius

    def begin(self, x, generator=None):
        return self.inner.begin(x, generator)

    def __call__(self, f, t, x, probe, *args):
        return self.inner(f, t, x, probe, *args)


class Biased(Changed):
    def __call__(self, f, t, x, probe, *args):
        v, div, norm = super().__call__(f, t, x, probe, *args)
        return v, 1.2 * div, norm


class WrongNorm(Changed):
    def __call__(self, f, t, x, probe, *args):
        v, div, norm = super().__call__(f, t, x, probe, *args)
        return v, div, norm.sqrt()


class Off(Changed):
    def __call__(self, f, t, x, probe, *args):
        v, div, norm = super().__call__(f, t, x, probe, *args)
        return v, div + 1e-5, norm


class OtherValue(Changed):
    def __call__(self, f, t, x, probe, *args):
        v, *rest = super().__call__(f, t, x, probe, *args)
        return v * 1.001, *rest


class Unseeded(Changed):
    def begin(self, x, generator=None):
        return self.inner.begin(x, None)


class Fixed(Changed):
    def begin(self, x, generator=None):
        return self.inner.begin(x, torch.Generator().manual_seed(0))


class DrawnAnew(Changed):
    def __call__(self, f, t, x, probe, *args):
        return super().__call__(f, t, x, self.inner.begin(x), *args)


class ForgetsArguments(Changed):
    def __call__(self, f, t, x, probe, *args):
        return super().__call__(f, t, x, probe)


class Shared(Changed):
    """Gives every sample the mean of all."""

    def __call__(self, f, t, x, probe, *args):
        v, div, norm = super().__call__(f, t, x, probe, *args)
        return v, div.mean().expand_as(div) if len(div) else div, norm


class Detached(Changed):
    def __call__(self, f, t, x, probe, *args):
        v, div, norm = super().__call__(f, t, x, probe, *args)
        return v, div.detach(), norm


class HalfGradient(Changed):
    def __call__(self, f, t, x, probe, *args):
        v, div, norm = super().__call__(f, t, x, probe, *args)
        return v, div.detach() + 0.5 * (div - div.detach()), norm


class Rough(Changed):
    def __call__(self, f, t, x, probe, *args):
        v, div, norm = super().__call__(f, t, x, probe, *args)
        return v, div.float(), norm


class Kept(Changed):
    """Keeps a column."""

    def __call__(self, f, t, x, probe, *args):
        v, div, norm = super().__call__(f, t, x, probe, *args)
        return v, div[:, None], norm


class NormAllTheSame(Changed):
    def __init__(self):
        super().__init__()
        self.frobenius = False


class OneProbe(Changed):
    """Draws one probe for the whole batch."""

    def begin(self, x, generator=None):
        return self.inner.begin(x[:1], generator)

    def __call__(self, f, t, x, probe, *args):
        return super().__call__(f, t, x, probe.expand(len(x), *probe.shape[1:]), *args)


class Undemanding(Changed):
    def __call__(self, f, t, x, probe, *args):
        drawn = self.inner.begin(x, torch.Generator().manual_seed(0))
        return super().__call__(f, t, x, drawn if probe is None or len(probe) != len(x) else probe, *args)


@dataclass(frozen=True)
class Copied(Hutchinson):
    """Comes out of a copy as another one."""

    def __deepcopy__(self, memo):
        return Copied(probes=7)


DEFECTS = {
    "divergence is off by": lambda: Biased(),
    "squared Frobenius norm is off by": lambda: WrongNorm(),
    "divergence is the Jacobian's": lambda: Off(Exact()),
    "squared Frobenius norm is the Jacobian's": lambda: WrongNorm(Exact()),
    "the value is the field's": lambda: OtherValue(),
    "with a generator, the probe draws no other": lambda: Unseeded(),
    "changes with the generator": lambda: Fixed(),
    "a call draws no random numbers": lambda: DrawnAnew(),
    "the value is the field's, arguments and all": lambda: ForgetsArguments(Exact()),
    "divergence of a sample does not depend": lambda: Shared(Exact()),
    "there is a graph only if": lambda: Detached(),
    "gradient is the gradient of the trace": lambda: HalfGradient(Exact()),
    "float64 stays float64": lambda: Rough(),
    "divergence has shape": lambda: Kept(),
    "norm is returned if frobenius": lambda: NormAllTheSame(),
    "first dimension of a probe": lambda: OneProbe(),
    "a probe of other samples": lambda: Undemanding(),
    "deep copy": lambda: Copied(),
}


@pytest.mark.parametrize("said", DEFECTS)
def test_a_defect_is_seen_and_named(said):
    with pytest.raises(AssertionError, match=said.removesuffix(", arguments and all")):
        check_divergence(DEFECTS[said]())


@pytest.mark.parametrize("inner", [Hutchinson(), Exact()], ids=repr)
def test_what_only_forwards_passes(inner):
    check_divergence(Changed(inner))
