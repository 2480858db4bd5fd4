"""A denoiser that reads no time saves calls and changes no sample; under guidance on an interval, all are needed."""

import pytest
import torch

from cflow import ctmc
from cflow.fields import FieldWrapper, TokenDiT
from cflow.guidance import AutoGuidance, ClassifierFree


class Counted(FieldWrapper):
    """Counts its calls; whether the field inside reads the time is what the wrapper is told."""

    reads_time = None

    def __init__(self, field, reads_time):
        super().__init__(field)
        self.reads_time, self.calls = reads_time, 0

    def forward(self, t, x, context=None, *, s=None):
        self.calls += 1
        return self.field(t, x, context)


@pytest.fixture
def network(generator):
    made = TokenDiT(4, 4, 3, width=8, depth=1, heads=2, classes=2, reads_time=False)
    with torch.no_grad():
        for each in made.parameters():
            each.add_(0.5 * torch.randn(each.shape, generator=generator))
    return made


@pytest.mark.parametrize(
    ("guidance", "saves"),
    [
        (None, True),
        (ClassifierFree(2.0), True),
        (ClassifierFree(20.0, interval=(0.4, 0.6)), False),
    ],
    ids=["plain", "guided", "guided on an interval"],
)
def test_samples_are_the_same_with_fewer_calls(guidance, saves, network):
    drawn, calls = [], []
    for reads_time in (True, False):
        counted = Counted(network, reads_time)
        flow = ctmc.TokenFlow(counted, ctmc.Mask(4, 3))
        options = {
            "sampler": ctmc.Analytic(steps=32),
            "guidance": guidance,
            "generator": torch.Generator().manual_seed(1),
        }
        drawn.append(torch.cat([flow.sample((), torch.tensor([1]), **options) for _ in range(12)]))
        calls.append(counted.calls)
    assert torch.equal(*drawn)
    assert calls[0] == 12 * 32
    assert calls[1] <= 12 * 5 if saves else calls[1] == calls[0]  # a call for every set of masked tokens


def test_a_guided_field_reads_what_field_or_guidance_read(network):
    assert not ClassifierFree(2.0)(network).reads_time
    assert ClassifierFree(2.0, interval=(0.0, 0.9))(network).reads_time
    assert ClassifierFree(2.0)(Counted(network, True)).reads_time
    assert AutoGuidance(network, 2.0)(network).reads_time
