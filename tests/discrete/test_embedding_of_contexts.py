"""Class labels and "no condition" for discrete-time flows."""

import inspect

import pytest
import torch

import cflow
from cflow import bases, bijections, discrete, fields, objectives, training
from cflow.testing import check_flow


def clusters(count, generator):
    """Two classes a long way apart."""
    labels = torch.randint(2, (count,), generator=generator)
    x = 0.3 * torch.randn(count, 2, generator=generator) + torch.where(labels == 1, 2.0, -2.0)[:, None]
    return x, labels


@pytest.mark.parametrize("preset", [discrete.nsf, discrete.maf, discrete.planar])
def test_presets_take_class_labels(preset):
    flow = preset(2, classes=3, layers=2)
    check_flow(flow, torch.tensor(1))
    assert (flow.classes, flow.context_shape) == (3, ())
    assert {"classes", "embedding"} <= set(inspect.signature(preset).parameters)
    with pytest.raises(ValueError, match="class labels from 0 to 7; pass 0 to 2, or 3 for no"):
        flow.log_prob(torch.zeros(2, 2), torch.tensor([0, 7]))
    with pytest.raises(ValueError, match="labels are not from 0 to 2"):
        training.fit(
            flow, objectives.MaximumLikelihood(), (torch.zeros(4, 2), torch.tensor([0, 1, 2, 3])), steps=1, batch_size=4
        )


def test_labels_are_compiled_whole_and_mapped():
    flow, x, labels = discrete.nsf(2, classes=3, layers=1), torch.randn(4, 2), torch.tensor([0, 1, 2, 1])
    with torch.no_grad():
        wanted = flow.log_prob(x, labels)
        compiled = torch.compile(flow.log_prob, fullgraph=True, backend="eager")
        assert torch.allclose(compiled(x, labels), wanted)
        assert torch.allclose(torch.func.vmap(flow.log_prob)(x, labels), wanted, atol=1e-6)


def test_vectors_go_through_an_embedding_too():
    flow = discrete.nsf(2, 3, embedding=8, layers=2)
    assert (flow.classes, flow.context_shape, flow.embedding.width) == (0, (3,), 8)
    check_flow(flow, torch.tensor([0.5, -1.0, 2.0]))
    context = torch.randn(5, 3)
    assert flow.log_prob(torch.zeros(5, 2), flow.null_context(context)).isfinite().all()


def test_no_condition_is_trained_by_maximum_likelihood(generator):
    """Without a label the flow has learned the mixture, with one its component."""
    x, labels = clusters(4000, generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = discrete.nsf(2, classes=2, layers=3)
    objective = objectives.MaximumLikelihood(condition_dropout=0.5)
    training.fit(flow, objective, (x, labels), steps=400, batch_size=256, lr=5e-3, seed=0)
    held, which = clusters(2000, generator)
    with torch.no_grad():
        known = flow.log_prob(held, which).mean()
        unknown = flow.log_prob(held, flow.null_context(which)).mean()
    # Knowing which of two equal halves it is, is worth log 2.
    assert float(known - unknown) == pytest.approx(0.693, abs=0.15)
    assert flow.trained_by[-1].condition_dropout == 0.5


def test_what_does_not_fit_is_refused(tmp_path):
    plain = discrete.nsf(2, context=3, layers=1)
    with pytest.raises(ValueError, match='no vector for "no condition"'):
        plain.null_context(torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"reads contexts of shape .*build it with context=5"):
        discrete.NormalizingFlow(plain.bijection, bases.Normal(2), embedding=fields.ContextEmbedding(5, classes=2))
    with pytest.raises(ValueError, match="pass at most one of the two"):
        discrete.nsf(2, context=3, classes=2)
    with pytest.raises(ValueError, match="there is no context to drop"):
        objectives.MaximumLikelihood(condition_dropout=0.1)(discrete.nsf(2, layers=1), torch.zeros(3, 2))
    flow = discrete.nsf(2, classes=3, layers=1)
    with pytest.raises(TypeError, match=r"labels are integers; pass context.long\(\)"):
        flow.log_prob(torch.zeros(2), torch.tensor(1.7))
    with pytest.raises(ValueError, match="a class label has no scale"):
        cflow.StandardisedContext(flow, bijections.Standardise((), 1.0, 1.0))
    for width in (0, 2.5):
        with pytest.raises(ValueError, match=r"nsf\(embedding=.*1 or more; pass 16"):
            discrete.nsf(2, classes=3, embedding=width)
    again = cflow.load(cflow.save(flow, tmp_path / "m"))
    assert again.classes == 3
