"""Given samples as a base."""

import pytest
import torch

import cflow
from cflow import bases, fields, paths
from cflow.testing import check_flow


def test_draws_are_rows_with_equal_chances(generator):
    rows = torch.randn(10, 3, generator=generator)
    draws = bases.Empirical(rows).sample((200, 50), generator=generator)
    assert draws.shape == (200, 50, 3)
    found = (draws.reshape(-1, 1, 3) == rows).all(-1)
    assert found.any(1).all()
    # A binomial count of mean 1000 and deviation 30: five deviations, times ten rows, fail once in 100,000 seeds.
    assert (found.sum(0) - 1000).abs().max() < 150


def test_images_tables_and_numbers_are_events():
    assert bases.Empirical(torch.zeros(5)).sample((2,)).shape == (2,)
    assert bases.Empirical(torch.zeros(5, 1, 4, 4)).sample(()).shape == (1, 4, 4)
    integers = bases.Empirical(torch.arange(6).reshape(3, 2))
    assert integers.sample((2,)).dtype == torch.float32
    assert bases.Empirical(torch.zeros(2, 2, dtype=torch.float64)).sample((1,)).dtype == torch.float64


def test_a_flow_from_data_has_no_density_and_says_so(generator):
    flow = cflow.ContinuousFlow(
        fields.MLP(2), bases.Empirical(torch.randn(20, 2, generator=generator)), path=paths.Linear()
    )
    assert flow.likelihood == "none"
    check_flow(flow)
    for call in (flow.log_prob, lambda x: flow.sample_and_log_prob((2,))):
        with pytest.raises(
            ValueError, match=r"flow\.(log_prob|sample_and_log_prob): .* from base Empirical has no density"
        ):
            call(torch.zeros(3, 2))
    z, ladj = flow.encode(torch.zeros(3, 2))
    assert z.shape == (3, 2)
    assert ladj.shape == (3,)


def test_a_density_is_refused_before_the_network_is_asked():
    class Never(torch.nn.Module):
        def forward(self, t, x, context=None, *, s=None):
            raise AssertionError

    flow = cflow.ContinuousFlow(Never(), bases.Empirical(torch.zeros(3, 2)), path=paths.Linear())
    for call in (flow.log_prob, flow.log_prob_estimate, lambda x: flow.sample_and_log_prob()):
        with pytest.raises(ValueError, match="no density"):
            call(torch.zeros(3, 2))


def test_half_precision_leaves_the_samples_as_they_are():
    samples = 1000 + torch.arange(8.0)[:, None] / 10
    flow = cflow.ContinuousFlow(fields.MLP(1), bases.Empirical(samples), path=paths.Linear()).to(torch.bfloat16)
    assert flow.field.output.weight.dtype == torch.bfloat16
    assert torch.equal(flow.base.samples, samples)
    assert (flow.sample((50,), generator=torch.Generator().manual_seed(0)) == samples.T).any(1).all()  # stands still


def test_draws_follow_the_flows_dtype():
    flow = cflow.ContinuousFlow(fields.MLP(2), bases.Empirical(torch.zeros(4, 2, dtype=torch.float64)))
    assert flow.sample((3,)).dtype == torch.float32


def test_bad_samples_are_refused():
    with pytest.raises(ValueError, match=r"shape \[0, 2\]"):
        bases.Empirical(torch.zeros(0, 2))
    with pytest.raises(ValueError, match="ndarray"):
        bases.Empirical(torch.zeros(3, 2).numpy())
    with pytest.raises(ValueError, match="NaN"):
        bases.Empirical(torch.tensor([[torch.nan, 0.0]]))
