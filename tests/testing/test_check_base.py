"""The suite for bases sees what is wrong with one, one defect at a time."""

import math

import pytest
import torch
from torch import nn

from cflow.bases import Empirical, Normal, Uniform
from cflow.registry import register
from cflow.testing import check_base


class WrongConstant(Normal):
    def _log_prob(self, x):
        return super()._log_prob(x) + 0.05


class Wider(Normal):
    """Draws a normal of another scale than it evaluates."""

    def _sample(self, shape, generator):
        return 1.3 * super()._sample(shape, generator)


class Shifted(Normal):
    def _sample(self, shape, generator):
        return 0.25 + super()._sample(shape, generator)


class Correlated(Normal):
    """Draws dependent entries, each with the law that it evaluates."""

    def _sample(self, shape, generator):
        x = super()._sample(shape, generator)
        return torch.cat([x[..., :1], 0.6 * x[..., :1] + 0.8 * x[..., 1:2], x[..., 2:]], -1)


class Laplace(Normal):
    """Evaluates another law of the same mean and variance."""

    def _log_prob(self, x):
        return (-math.sqrt(2) * x.abs() - 0.5 * math.log(2)).sum(-1)


class Unseeded(Normal):
    def _sample(self, shape, generator):
        return super()._sample(shape, None)


class Halfway(Normal):
    """Draws a part from the generator and a part from PyTorch's own."""

    def _sample(self, shape, generator):
        return super()._sample(shape, generator) + 0.0 * torch.randn(1, dtype=self.dtype)


class Frozen(Normal):
    def _sample(self, shape, generator):
        return super()._sample(shape, torch.Generator().manual_seed(0))


class Single(Normal):
    """Draws in float32 and says float64."""

    def _sample(self, shape, generator):
        return super()._sample(shape, generator).float().to(self.dtype)


class AlwaysSingle(Normal):
    def _sample(self, shape, generator):
        return super()._sample(shape, generator).float()


class RoughDensity(Normal):
    def _log_prob(self, x):
        return super()._log_prob(x).float()


class Flat(Normal):
    """Forgets the event's shape."""

    def _sample(self, shape, generator):
        return super()._sample(shape, generator)[..., 0]


class PerEntry(Normal):
    def _log_prob(self, x):
        return torch.distributions.Normal(0.0, 1.0).log_prob(x)


class NoEmpty(Normal):
    def _sample(self, shape, generator):
        assert math.prod(shape) > 0
        return super()._sample(shape, generator)


class Lenient(Normal):
    """Takes masks and contexts, and reads neither."""

    def _refuse(self, method, context, mask):
        pass


class Broadcasting(Normal):
    """Evaluates points of any shape."""

    def log_prob(self, x, context=None, *, mask=None):
        return self._log_prob(x)


class Promising(Empirical):
    has_density = True


class Dense(Empirical):
    """Gives given samples a density."""

    def _log_prob(self, x):
        return x.sum(-1)


class Copied(Normal):
    def __deepcopy__(self, memo):
        return Copied(self.event_shape, loc=self.loc + 1).double()


class Untrained(Normal):
    def _log_prob(self, x):
        return Normal(self.event_shape, self.loc.detach(), 1.0).log_prob(x)


class Listed(Normal):
    def __init__(self, event_shape):
        super().__init__(event_shape)
        self.event_shape = tuple(self.event_shape)


DEFECTS = {
    "integrates to 1.05": lambda: WrongConstant(2),
    "samples follow log_prob": lambda: Wider(3),
    "samples follow log_prob (shift)": lambda: Shifted(1),
    "samples follow log_prob (dependence)": lambda: Correlated(3),
    "samples follow log_prob (form)": lambda: Laplace(2),
    "with a generator, a sample draws no other": lambda: Unseeded(2),
    "draws no other random number": lambda: Halfway(2),
    "changes with the generator": lambda: Frozen(2),
    "more digits than float32": lambda: Single(2),
    "samples of a base in torch.float64": lambda: AlwaysSingle(2),
    "log-densities of a base in torch.float64": lambda: RoughDensity(2),
    r"sample\(\(\)\) has shape": lambda: Flat(2),
    "log_prob of": lambda: PerEntry(2),
    "a mask that is not read": lambda: Lenient(2),
    "a point of another shape": lambda: Broadcasting(2),
    "a density that does not exist must raise": lambda: Dense(torch.randn(9, 2)),
    "deep copy": lambda: Copied(2),
    r"no finite gradient of log_prob reaches \['loc'\]": lambda: Untrained(2, loc=nn.Parameter(torch.zeros(2))),
    "event_shape is a torch.Size": lambda: Listed(2),
}


@pytest.mark.parametrize("said", DEFECTS)
def test_a_defect_is_seen_and_named(said):
    with pytest.raises(AssertionError, match=said.split(" (")[0]):
        check_base(DEFECTS[said](), saved=False)


@pytest.mark.parametrize("base", [NoEmpty(2), Promising(torch.zeros(3, 2))], ids=["no empty batch", "no density"])
def test_what_fails_by_itself_fails_the_suite(base):
    with pytest.raises((AssertionError, ValueError)):
        check_base(base, saved=False)


def test_a_base_of_ones_own_may_read_a_context(generator):
    class Moved(nn.Module):
        """Draws a normal around the context."""

        has_density, event_shape, context_shape = True, torch.Size([2]), torch.Size([2])

        def __init__(self):
            super().__init__()
            self.inner = Normal(2)

        def _centre(self, context, mask):
            if context is None or mask is not None:
                raise ValueError("a context, and no mask")
            return context.to(self.inner.dtype)

        def sample(self, shape=(), context=None, *, mask=None, generator=None):
            return self._centre(context, mask) + self.inner.sample(shape, generator=generator)

        def log_prob(self, x, context=None, *, mask=None):
            if x.shape[-1:] != self.event_shape:
                raise ValueError("a point of the plane")
            return self.inner.log_prob(x - self._centre(context, mask).to(x.dtype))

    check_base(Moved(), torch.tensor([3.0, -1.0]), saved=False)
    check_base(Uniform(2), saved=False)


@register("test_check_base.Lost")
class Lost(Normal):
    """Holds a number that no file knows of."""

    def __init__(self, event_shape):
        super().__init__(event_shape, loc=float(torch.rand(())))


def test_what_a_file_does_not_bring_back_is_seen():
    with pytest.raises(AssertionError, match="a loaded base is the same base"):
        check_base(Lost(2))
