import math

import pytest
import torch

from cflow.fields import MLP, ContextEmbedding, SinusoidalTime


def test_frequencies_are_a_ladder_and_pairs_lie_on_a_circle(float64):
    embedding = SinusoidalTime(16, lowest=1.0, highest=64.0)
    t = torch.linspace(0, 1, 50)
    sines, cosines = embedding(t).chunk(2, -1)
    torch.testing.assert_close(sines**2 + cosines**2, torch.ones(50, 8))
    ladder = torch.tensor([64 ** (j / 7) for j in range(8)])
    measured = torch.atan2(sines[1], cosines[1]) / t[1]
    torch.testing.assert_close(measured[:6], ladder[:6], rtol=2**-8, atol=0.0)  # rounded to eight bits


def test_a_network_in_bf16_still_tells_near_times_apart():
    exact, low = SinusoidalTime(32, highest=256.0), SinusoidalTime(32, highest=256.0).bfloat16()
    t = torch.tensor([0.5, 0.5005])  # equal when rounded to bf16
    torch.testing.assert_close(low(t, dtype=torch.float32), exact(t), rtol=0.0, atol=1e-5)
    assert low(t).dtype == torch.bfloat16
    assert (exact(t)[0] - exact(t)[1]).abs().max() > 0.05
    torch.testing.assert_close(low.float()(t), exact(t))  # and the way back loses nothing


def test_float64_times_keep_their_precision(float64):
    t = torch.tensor([0.1])
    found = SinusoidalTime(4, lowest=1.0, highest=2.0)(t)[0]
    expected = [math.sin(0.1), math.sin(0.2), math.cos(0.1), math.cos(0.2)]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-14, atol=0.0)


@pytest.mark.parametrize(("arguments", "match"), [((5,), "even"), ((2,), "4 or more")])
def test_sinusoids_come_in_pairs(arguments, match):
    with pytest.raises(ValueError, match=match):
        SinusoidalTime(*arguments)


@pytest.mark.parametrize("ends", [(0.0, 1.0), (2.0, 1.0), (1.0, 1.0)])
def test_frequencies_must_rise(ends):
    with pytest.raises(ValueError, match="lowest < highest"):
        SinusoidalTime(8, lowest=ends[0], highest=ends[1])


@pytest.mark.parametrize(("classes", "context"), [(0, 0), (2, 2), (-1, 0)])
def test_an_embedding_reads_one_kind_of_condition(classes, context):
    with pytest.raises(ValueError, match="ContextEmbedding"):
        ContextEmbedding(8, classes=classes, context=context)


def test_integers_hold_no_missing_condition():
    field = MLP(2, context=3)
    with pytest.raises(TypeError, match=r"cannot hold the value.*pass context.float\(\)"):
        field.null_context(torch.zeros(4, 3, dtype=torch.long))


@pytest.mark.parametrize("classes", [2.5, "3", True, -1])
def test_classes_are_counted(classes):
    with pytest.raises(ValueError, match="pass at most one of the two"):
        ContextEmbedding(4, classes=classes)
