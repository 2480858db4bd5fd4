"""What transformers on images do that other networks do not; what every network does is in test_networks.py."""

import pytest
import torch

from cflow import divergence, fields
from cflow.fields.dit import DiT
from cflow.fields.mmdit import MMDiT
from cflow.fields.transformer import Patches, attend, grid_angles, rotate, rotations

SMALL = {"patch": 2, "width": 16, "depth": 2, "heads": 2}


@pytest.fixture
def moved(generator, float64):
    """Moves every parameter, so that no branch is closed."""

    def move(field):
        with torch.no_grad():
            for each in field.parameters():
                each.add_(0.2 * torch.randn(each.shape, generator=generator))
        return field

    return move


def test_published_size():
    with torch.device("meta"):
        field = DiT(3, 32, patch=2, width=384, depth=2, heads=6)
    count = lambda module: sum(each.numel() for each in module.parameters())
    # Twelve blocks are DiT-S, of 33 M parameters.
    assert count(field) + 10 * count(field.blocks[0]) == pytest.approx(32.5e6, rel=1e-2)


def test_rotated_products_depend_on_differences_of_positions(generator, float64):
    angles = grid_angles((5, 6), rotations(6, 100.0)).view(5, 6, 6)
    turns = lambda place: (angles[place][None].cos(), angles[place][None].sin())
    q, k = torch.randn(2, 12, generator=generator)
    product = lambda a, b: rotate(q[None], turns(a)) @ rotate(k[None], turns(b)).T
    torch.testing.assert_close(product((1, 1), (2, 4)), product((2, 0), (3, 3)))
    torch.testing.assert_close(rotate(q[None], turns((0, 0)))[0], q)
    assert (product((1, 1), (2, 4)) - product((1, 1), (4, 2))).abs() > 1e-3  # rows and columns are told apart


def test_patches_are_put_back_where_they_were(generator):
    patches = Patches(2, (6, 9), 3, 18, 1, 3, "rope")
    with torch.no_grad():
        patches.input.weight.copy_(torch.eye(18))
        patches.input.bias.zero_()
    x = torch.randn(4, 2, 6, 9, generator=generator)
    tokens = patches.tokens(x)
    assert tokens.shape == (4, 6, 18)
    torch.testing.assert_close(tokens[:, 1], x[:, :, :3, 3:6].flatten(1))
    with torch.no_grad():
        patches.output.weight.copy_(torch.eye(18))
    # What the last norm does to a token is undone by its own mean and deviation.
    image = patches.image(tokens, torch.zeros(1, 18))
    back = torch.nn.functional.layer_norm(tokens, (18,), eps=1e-6)
    torch.testing.assert_close(image[:, :, :3, 3:6].flatten(1), back[:, 1])


def test_both_kinds_of_attention_agree(generator, float64):
    q, k, v = torch.randn(3, 2, 3, 5, 8, generator=generator)
    torch.testing.assert_close(attend(q, k, v, True), attend(q, k, v, False))


@pytest.mark.parametrize("positions", ["rope", "sincos"])
def test_positions_matter(positions, moved, generator):
    field = moved(DiT(1, 8, positions=positions, **SMALL))
    x = torch.randn(1, 1, 8, 8, generator=generator)
    turned = lambda x: x.roll(2, -1)  # whole patches
    assert (field(0.5, turned(x)) - turned(field(0.5, x))).norm() > 1e-2 * field(0.5, x).norm()


@pytest.mark.parametrize(
    "make",
    [
        lambda two: DiT(1, 4, two_times=two, **SMALL),
        lambda two: MMDiT(1, 4, tokens=3, token_width=4, two_times=two, **SMALL),
    ],
    ids=["dit", "mmdit"],
)
def test_a_field_of_one_time_is_the_start_of_one_of_two(make, moved, generator):
    one, two = moved(make(False)), make(True)
    missing, unexpected = two.load_state_dict(one.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("time.span") for name in missing)
    x = torch.randn(3, *one.event_shape, generator=generator)
    t, s = torch.rand(2, 3, generator=generator)
    words = None if one.context_shape is None else torch.randn(3, *one.context_shape, generator=generator)
    torch.testing.assert_close(two(t, x, words, s=s), one(t, x, words))
    moved(two)
    assert (two(t, x, words, s=s) - two(t, x, words)).norm() > 1e-3
    # Shared times and those of every sample are the same.
    torch.testing.assert_close(two(t[0], x, words, s=s[0]), two(t[:1].expand(3), x, words, s=s[0].repeat(3)))
    # The derivative along a path, which average velocities are trained by, is that of differences.
    v, h = torch.randn(x.shape, generator=generator), 1e-6
    along = lambda e: two(t + e, x + e * v, words, s=s)
    _, tangent = torch.func.jvp(along, (torch.tensor(0.0),), (torch.tensor(1.0),))
    torch.testing.assert_close(tangent, (along(h) - along(-h)) / (2 * h), rtol=1e-4, atol=1e-5)


def test_a_description_is_read_token_by_token(moved, generator):
    field = moved(MMDiT(1, 4, tokens=3, token_width=4, **SMALL))
    x, words = torch.randn(2, 1, 4, 4, generator=generator), torch.randn(2, 3, 4, generator=generator)
    result = field(0.5, x, words)
    for token in range(3):
        changed = words.clone()
        changed[0, token] += 1
        assert (field(0.5, x, changed) - result)[0].norm() > 1e-3
        assert (field(0.5, x, changed) - result)[1].norm() == 0
    # Words say what they say wherever they stand: the encoder that made them knows their order.
    torch.testing.assert_close(field(0.5, x, words.flip(1)), result)
    filled = words.clone()
    filled[0, 1:] = field.null_context(filled[0, 1:])
    again = filled.clone()
    again[0, 1:] = field.null_context(again[0, 1:] + 7)
    torch.testing.assert_close(field(0.5, x, filled), field(0.5, x, again))
    assert (field(0.5, x, filled) - result)[0].norm() > 1e-3


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"size": 8, "patch": 3}, "divides the size"),
        ({"size": 8, "width": 18, "heads": 2}, "4 \\* heads"),
        ({"size": 8, "positions": "learned"}, "rope, sincos"),
        ({"size": 8, "ratio": 0}, "positive"),
        ({"size": 8, "classes": 2, "context": 2}, "at most one"),
        ({"size": 8, "outputs": 0}, "outputs=0"),
    ],
)
def test_dit_refuses_what_cannot_be(arguments, match):
    with pytest.raises(ValueError, match=match):
        DiT(1, **SMALL | arguments)


def test_mmdit_refuses_a_description_of_nothing():
    with pytest.raises(ValueError, match="use DiT"):
        MMDiT(1, 8, tokens=0, token_width=4, **SMALL)


@pytest.mark.parametrize(
    "make",
    [
        lambda: fields.MLP(2, hidden=(8, 8), two_times=True),
        lambda: fields.UNet(1, 8, width=8, blocks=1, two_times=True),
        lambda: fields.DiT(1, 8, patch=4, width=16, depth=1, heads=2, two_times=True),
        lambda: fields.MMDiT(1, 8, patch=4, width=16, depth=1, heads=2, tokens=3, token_width=5, two_times=True),
    ],
    ids=["MLP", "UNet", "DiT", "MMDiT"],
)
def test_without_a_second_time_a_field_of_two_gives_its_velocity(make, generator, float64):
    """After training, too, when a step of no length has an embedding of its own."""
    field = make()
    with torch.no_grad():
        for each in field.parameters():
            each.add_(0.3 * torch.randn(each.shape, generator=generator))
    x, t = torch.randn(4, *field.event_shape, generator=generator), torch.rand(4, generator=generator)
    context = None if field.context_shape is None else torch.randn(4, *field.context_shape, generator=generator)
    velocity = field(t, x, context)
    assert torch.equal(velocity, field(t, x, context, s=t))
    assert (velocity - field(t, x, context, s=torch.ones(4))).norm() > 1e-3
    torch.testing.assert_close(field(0.3, x, context, s=0.8), field(torch.tensor(0.3), x, context, s=torch.tensor(0.8)))
    if isinstance(field, fields.MLP):
        v, trace, _ = divergence.Analytic()(field, t, x, None)
        exact = divergence.Exact()(lambda t, x: field(t, x, s=t), t, x, None)
        torch.testing.assert_close((v, trace), exact[:2])


@pytest.mark.parametrize("positions", ["rope", "sincos"])
def test_positions_survive_low_precision(positions, moved, generator):
    field = moved(DiT(1, 8, positions=positions, **SMALL)).bfloat16()
    weights, again = field.state_dict(), DiT(1, 8, positions=positions, **SMALL)
    again.load_state_dict(weights)
    x, t = torch.randn(2, 1, 8, 8, generator=generator), torch.rand(2, generator=generator)
    assert torch.equal(field.double()(t, x), again(t, x))  # cast and back, or saved and loaded
