import pytest
import torch

import cflow
from cflow import bases, bijections, discrete, fields, objectives, paths, training


def flow_of(features=2, **options):
    torch.manual_seed(0)
    layers = [
        discrete.Autoregressive(discrete.Affine(), features, order=order, hidden=(32,)) for order in ([0, 1], [1, 0])
    ]
    return discrete.NormalizingFlow(discrete.Compose(*layers), bases.Normal(features), **options)


def test_the_loss_is_the_negative_log_density_of_the_data_as_measured(generator):
    x = 5 + 3 * torch.randn(7, 2, generator=generator)
    flow = flow_of().with_transform(bijections.Standardise(2, loc=5.0, scale=3.0))
    assert torch.allclose(objectives.MaximumLikelihood()(flow, x), -flow.log_prob(x))
    bounded = flow_of().with_transform(bijections.Logit(2))
    x = torch.rand(7, 2, generator=generator)
    assert torch.allclose(objectives.MaximumLikelihood()(bounded, x), -bounded.log_prob(x))


def test_training_reaches_the_entropy_of_a_correlated_normal(generator):
    factor = torch.tensor([[1.0, 0.0], [1.5, 0.5]])
    x = torch.randn(4000, 2, generator=generator) @ factor.T + 3
    flow = flow_of()
    training.fit(flow, objectives.MaximumLikelihood(), x, steps=300, batch_size=500, lr=1e-2, seed=0)
    fresh = torch.randn(4000, 2, generator=generator) @ factor.T + 3
    truth = torch.distributions.MultivariateNormal(torch.full((2,), 3.0), scale_tril=factor)
    # Kullback-Leibler divergence; the standard error of the difference is some 0.005.
    with torch.no_grad():
        assert float((truth.log_prob(fresh) - flow.log_prob(fresh)).mean()) < 0.03


def test_it_trains_a_continuous_flow_too(generator):
    flow = cflow.ContinuousFlow(fields.MLP(2, hidden=(8,)), bases.Normal(2), path=paths.Linear())
    torch.nn.init.normal_(flow.field.output.weight, generator=generator)
    x = torch.randn(3, 2, generator=generator)
    loss = objectives.MaximumLikelihood()(flow, x)
    assert torch.equal(loss, objectives.FFJORD(flow.divergence, solver=flow.solver)(flow, x))
    loss.sum().backward()
    assert loss.shape == (3,)
    assert all(each.grad is not None for each in flow.parameters())


def test_conditional_flows_and_resumed_runs(tmp_path, generator):
    x, context = torch.randn(64, 2, generator=generator), torch.randn(64, 3, generator=generator)
    make = lambda: discrete.NormalizingFlow(discrete.Coupling(discrete.Affine(), 2, context=3), bases.Normal(2))
    run = lambda flow, steps, **more: training.fit(
        flow,
        objectives.MaximumLikelihood(),
        (x, context),
        steps=steps,
        batch_size=16,
        schedule=training.Constant(),
        seed=1,
        **more,
    )
    flows = []
    for parts in ([6], [3, 6]):
        torch.manual_seed(0)
        flows.append(make())
        for steps in parts:
            run(flows[-1], steps, out=tmp_path / str(len(parts)), resume=steps > parts[0])
    states = [flow.state_dict() for flow in flows]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_flow_without_a_density_is_refused():
    flow = cflow.ContinuousFlow(fields.MLP(2), bases.Empirical(torch.randn(8, 2)), path=paths.Linear())
    with pytest.raises(ValueError, match="has no density .*flow matching"):
        objectives.MaximumLikelihood()(flow, torch.randn(4, 2))


def test_a_flow_without_a_base_is_trained(generator):
    """Logits of one token: the most likely ones are the logarithms of the frequencies."""

    @cflow.register("tests.Categorical")
    class Categorical(cflow.BaseFlow):
        likelihood = "exact"

        def __init__(self):
            super().__init__(1)
            self.logits = torch.nn.Parameter(torch.zeros(3))

        def _log_prob(self, x, context, generator):
            return self.logits.log_softmax(0)[x.long()[:, 0]]

    flow = Categorical()
    x = torch.tensor([[0.0]] * 5 + [[1.0]] * 3 + [[2.0]] * 2)
    training.fit(flow, objectives.MaximumLikelihood(), x, steps=300, batch_size=10, lr=0.05, ema=None)
    assert torch.allclose(flow.logits.softmax(0), torch.tensor([0.5, 0.3, 0.2]), atol=1e-2)
