"""The suite for laws of times sees what is wrong with one, one defect at a time."""

from dataclasses import dataclass

import pytest
import torch

from cflow.testing import check_times
from cflow.times import Beta, Times, Uniform


class Outside(Uniform):
    def __call__(self, count, **options):
        return 1.01 * super().__call__(count, **options)


class Column(Uniform):
    def __call__(self, count, **options):
        return super().__call__(count, **options)[:, None]


class Single(Uniform):
    def __call__(self, count, *, dtype=None, **options):
        return super().__call__(count, **options)


class Unseeded(Uniform):
    def __call__(self, count, *, generator=None, **options):
        return super().__call__(count, **options)


class Frozen(Uniform):
    def __call__(self, count, *, generator=None, **options):
        return super().__call__(count, generator=torch.Generator().manual_seed(0), **options)


class OtherLaw(Uniform):
    """Draws a law that is not that of its icdf."""

    def uniforms(self, count, generator, device, dtype):
        return super().uniforms(count, generator, device, dtype) ** 1.2


class OtherDensity(Beta):
    def log_density(self, t):
        return super().log_density(t) + 0.01


class Endless(Uniform):
    def log_density(self, t):
        return torch.zeros_like(t)


class Falling(Uniform):
    def icdf(self, u):
        return 1 - u


class Part(Uniform):
    def icdf(self, u):
        return 0.9 * u


class Coarse(Uniform):
    """Draws one of a thousand times."""

    def icdf(self, u):
        return u

    def uniforms(self, count, generator, device, dtype):
        return torch.randint(1000, (count,), generator=generator, device=device).to(dtype) / 1000 + 0.0005


class Integers(Uniform):
    def __call__(self, count, *, dtype=None, **options):
        if dtype is not None and not dtype.is_floating_point:
            return super().__call__(count, **options).to(dtype)
        return super().__call__(count, dtype=dtype, **options)


@dataclass(frozen=True)
class Copied(Times):
    power: float = 1.0

    def icdf(self, u):
        return u**self.power

    def log_density(self, t):
        return Beta(1 / self.power, 1.0).log_density(t)

    def __deepcopy__(self, memo):
        return Copied(2.0)


DEFECTS = {
    r"lie in \[0, 1\]": Outside(),
    "have shape": Column(),
    "times have the dtype": Single(),
    "with a generator, times draws no other": Unseeded(),
    "changes with the generator": Frozen(),
    "draws follow icdf": OtherLaw(),
    "density is one over the slope": OtherDensity(1.0, 1.5),
    "no density outside": Endless(),
    "runs from 0 to 1": Falling(),
    "runs from 0 to 1 (scale)": Part(),
    "many different values": Coarse(),
    "times of torch.int64 must raise": Integers(),
    "deep copy": Copied(),
}


@pytest.mark.parametrize("said", DEFECTS)
def test_a_defect_is_seen_and_named(said):
    with pytest.raises(AssertionError, match=said.split(" (")[0]):
        check_times(DEFECTS[said])
