"""Data far from the draws of the base: one warning, and none without a reason."""

import warnings

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import cflow
from cflow import bases, bijections, discrete, fields, objectives, paths, training
from cflow.training.scale import warn_of_scale

pytestmark = pytest.mark.filterwarnings("error:fit")  # wherever it points


class Rows(Dataset):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i]


def flow_of(*event, base=None):
    size = event[0] if len(event) == 1 else event
    return discrete.maf(size, layers=1, hidden=(4,)) if base is None else discrete.NormalizingFlow(
        discrete.Elementwise(discrete.Affine(), size), base
    )  # fmt: skip


def matching(features):
    return cflow.ContinuousFlow(fields.MLP(features, hidden=(4,)), bases.Normal(features), path=paths.Linear())


def fit(flow, data, objective=None, steps=3, **options):
    return training.fit(flow, objective or objectives.MaximumLikelihood(), data, steps=steps, batch_size=64, **options)


@pytest.mark.parametrize("how", ["tensor", "dataset", "loader"])
@pytest.mark.parametrize("threads", [0, 2])
def test_data_a_thousand_times_too_large_are_warned_of_once(how, threads, generator):
    x = 1000 * torch.randn(256, 2, generator=generator) + 5000
    data = {"tensor": x, "dataset": Rows(x), "loader": DataLoader(x, batch_size=64)}[how]
    with pytest.warns(UserWarning, match=r"2 of 2 columns are far from.*Standardise\.fit\(x\)") as seen:
        fit(matching(2), data, objectives.FlowMatching(), prefetch=threads, steps=6)
    assert len(seen) == 1


@pytest.mark.parametrize("base", [bases.Normal((1, 40)), bases.Simplex((1, 40))], ids=lambda base: type(base).__name__)
def test_tokens_have_no_scale(base, generator):
    """One-hot vectors are far from points of the simplex, and a rare token makes a narrow column."""
    field = fields.Adapted(torch.nn.Linear(40, 40), lambda net, t, x, c: net(x), event_shape=(1, 40))
    path = paths.Dirichlet() if isinstance(base, bases.Simplex) else None
    flow = cflow.RelaxedFlow(field, base, path=path)
    tokens = torch.randint(40, (256, 1), generator=generator)
    fit(flow, tokens, objectives.FlowMatching())  # a warning is an error here


@pytest.mark.parametrize("scale", [1000.0, 1e-3])
def test_the_remedy_is_silent(scale, generator):
    x = scale * torch.randn(256, 2, generator=generator)
    with pytest.warns(UserWarning, match="are far from the draws of the base"):
        fit(flow_of(2), x)
    fit(flow_of(2).with_transform(bijections.Standardise.fit(x)), x)  # a warning is an error here
    fit(flow_of(2).with_transform(bijections.Standardise(2, learned=True)), x, steps=1)  # may learn to bring them there


def test_one_column_far_off_is_counted(generator):
    x = torch.randn(256, 3, generator=generator)
    x[:, 1] += 100
    with pytest.warns(UserWarning, match=r"1 of 3 columns are far from.*means 99"):
        fit(flow_of(3), x)


def test_what_flows_are_trained_on_is_not_warned_of(generator):
    draw = lambda *shape: torch.randn(*shape, generator=generator)
    images = 2 * torch.rand(128, 16, generator=generator) - 1
    images[:, :4] = -1  # a margin of one colour
    for flow, x in (
        (flow_of(2), draw(128, 2)),
        (flow_of(2), draw(128, 2).exp()),
        (flow_of(2), 4 * draw(128, 2) + 3),
        (flow_of(16), images),
        (flow_of(2, base=bases.Normal(2, loc=5000.0, scale=1000.0)), 1000 * draw(128, 2) + 5000),
        (flow_of(2, base=bases.StudentT(2, df=1.0)), draw(128, 2)),
    ):
        fit(flow, x, steps=1)
    between = cflow.ContinuousFlow(fields.MLP(2), bases.Empirical(1000 * draw(50, 2)), path=paths.Linear())
    fit(between, 1000 * draw(128, 2), objectives.FlowMatching(), steps=1)


def test_bases_of_the_laws_of_the_data_are_not_warned_of(generator):
    draw = lambda *shape: torch.randn(*shape, generator=generator)
    categories = lambda rows: torch.eye(12)[torch.randint(12, (rows,), generator=generator)]
    sparse = lambda rows: draw(rows, 4) * (torch.rand(rows, 4, generator=generator) < 0.05)
    constant = lambda rows: torch.cat([draw(rows, 2), torch.full((rows, 1), 3.0)], 1)
    for law in (categories, sparse, constant):
        flow = cflow.ContinuousFlow(fields.MLP(law(1).shape[1]), bases.Empirical(law(500)), path=paths.Linear())
        fit(flow, law(256), objectives.FlowMatching(), steps=1)
    cauchy = bases.StudentT(2, df=1.0)
    fit(flow_of(2, base=cauchy), cauchy.sample((256,), generator=generator), steps=1)


def test_what_is_far_from_such_bases_is_warned_of(generator):
    cauchy = bases.StudentT(2, df=1.0)
    with pytest.warns(UserWarning, match="2 of 2 columns are far from"):
        fit(flow_of(2, base=cauchy), 1000 * cauchy.sample((256,), generator=generator), steps=1)
    categories = torch.eye(12)[torch.randint(12, (500,), generator=generator)]
    flow = cflow.ContinuousFlow(fields.MLP(12), bases.Empirical(categories), path=paths.Linear())
    with pytest.warns(UserWarning, match="12 of 12 columns are far from"):
        fit(flow, 1000 * categories, objectives.FlowMatching(), steps=1)
    wild = torch.randn(64, 2, generator=generator)
    wild[0] = 1e6
    with pytest.warns(UserWarning, match="2 of 2 columns are far from"):
        fit(flow_of(2), wild, steps=1)


@pytest.mark.parametrize("threads", [0, 2])
def test_the_warning_points_at_the_call_of_fit(threads, generator):
    x = 1000 * torch.randn(256, 2, generator=generator)
    with pytest.warns(UserWarning, match="are far from") as seen:
        training.fit(flow_of(2), objectives.MaximumLikelihood(), x, steps=1, batch_size=64, prefetch=threads)
    assert seen[0].filename == __file__


def test_the_look_moves_no_random_state():
    flow, objective = matching(2).with_transform(bijections.Dequantise(2, 4096)), objectives.FlowMatching()
    before = torch.get_rng_state()
    with pytest.warns(UserWarning, match="deviations"):  # levels over [0, 1], all of them alike
        warn_of_scale(flow, objective, torch.full((8, 2), 4000))
    assert torch.equal(torch.get_rng_state(), before)


def test_objectives_that_read_no_data_are_left_alone():
    objective = objectives.ReverseKL(lambda z: -0.5 * (z - 1e4).square().sum(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        training.fit(flow_of(2), objective, steps=1, batch_size=8)
