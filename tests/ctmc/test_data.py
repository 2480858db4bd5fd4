"""Data of token flows behind transforms, and given pairs."""

import pytest
import torch

from cflow import bijections, couplings, ctmc, fields, objectives, training


class Places(fields.Field):
    """Returns other logits at each of four places."""

    def __init__(self):
        super().__init__((4,))
        self.logits = torch.nn.Parameter(torch.arange(12.0).reshape(4, 3).sin())

    def forward(self, t, x, context=None, *, s=None):
        return self.logits.expand(*x.shape, 3)


@pytest.fixture
def flow():
    return ctmc.TokenFlow(Places(), ctmc.Mask(4, 3))


def test_transforms_move_tokens_and_stay_probabilities(flow):
    seed = lambda: torch.Generator().manual_seed(0)
    inside = flow.sample((5,), generator=seed())
    cases = {
        bijections.Permute([3, 1, 0, 2]): inside[:, torch.tensor([3, 1, 0, 2]).argsort()],
        bijections.Reshape((2, 2), (4,)): inside.reshape(5, 2, 2),
        bijections.Standardise(4, loc=10.0, scale=2.0): 2 * inside + 10,
    }
    for transform, wanted in cases.items():
        outside = flow.with_transform(transform)
        x = outside.sample((5,), generator=seed())
        assert x.dtype == torch.int64
        assert torch.equal(x, wanted)
        torch.testing.assert_close(
            outside.log_prob(x.to(torch.uint8), generator=seed()), flow.log_prob(inside, generator=seed())
        )
    training.fit(outside, objectives.FlowMatching(), x.repeat(4, 1), steps=1, batch_size=8)
    with pytest.raises(ValueError, match=r"token \d.5"):
        outside.log_prob(x + 1)


def test_tokens_of_the_base_in_pairs_are_checked():
    rows = torch.zeros(8, 4, dtype=torch.long)
    flow = ctmc.TokenFlow(Places(), ctmc.Given(rows, 3))
    with pytest.raises(ValueError, match="x0: token 7"):
        objectives.FlowMatching(couplings.Paired())(flow, torch.stack((rows + 7, rows), 1))


def test_the_leave_one_out_head_needs_visible_tokens_to_be_carried_over():
    with pytest.raises(ValueError, match="says nothing about visible tokens"):
        ctmc.Mixture(head="leave-one-out", carry_over=False).bind(ctmc.Mask(4, 3))
    assert ctmc.Mixture(head="leave-one-out", carry_over=False).bind(ctmc.Uniform(4, 3)).predict == "leave-one-out"
