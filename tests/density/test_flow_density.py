import math
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import make_moons
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import cflow
from cflow import bases, discrete, fields, paths
from cflow.density import FLOWS, ConditionalFlowDensity, FlowDensity
from cflow.density.learning import HeldOut, Rows
from cflow.density.rows import copied_rows
from cflow.density.units import units_of
from cflow.objectives import MaximumLikelihood

SMALL = {"flow_options": {"layers": 2, "hidden": (16,)}, "max_steps": 12, "check_every": 4, "random_state": 0}


@pytest.fixture
def moons():
    return make_moons(300, noise=0.1, random_state=0)[0]


def test_a_density_of_readings_far_from_zero_integrates_to_one():
    """Years since the big bang in seconds would lose all their digits in float32."""
    rng = np.random.default_rng(0)
    X = 1e9 + 1e-3 * rng.normal(size=(400, 1))
    density = FlowDensity(**SMALL).fit(X)
    grid = 1e9 + 1e-3 * np.linspace(-12, 12, 4001)
    assert np.trapezoid(np.exp(density.score_samples(grid[:, None])), grid) == pytest.approx(1, abs=2e-3)
    entropy = 0.5 * math.log(2 * math.pi * math.e) + math.log(1e-3)
    assert density.score(X) == pytest.approx(-entropy, abs=0.2)


def test_scores_are_in_units_of_the_data(moons):
    """Stretching the data by a factor lowers every log-density by its logarithm, feature by feature."""
    one = FlowDensity(**SMALL).fit(moons)
    other = FlowDensity(**SMALL).fit(moons * [8.0, 0.25] + [3.0, -5.0])
    change = one.score_samples(moons) - other.score_samples(moons * [8.0, 0.25] + [3.0, -5.0])
    assert np.allclose(change, math.log(8.0 * 0.25), atol=1e-4)
    for row, again in zip(one.history_, other.history_):
        assert row["loss"] == pytest.approx(again["loss"] - math.log(2.0), abs=1e-4)
        assert row["validation"] == pytest.approx(again["validation"] - math.log(2.0), abs=1e-4)


def test_training_gets_nearer_to_the_truth(moons):
    short, long = (FlowDensity("maf", **{**SMALL, "max_steps": steps}, lr=1e-2).fit(moons) for steps in (4, 150))
    fresh = make_moons(500, noise=0.1, random_state=1)[0]
    assert long.score(fresh) > short.score(fresh) + 0.15
    drawn = long.sample(2000, random_state=0)
    assert np.abs(drawn.mean(0) - moons.mean(0)).max() < 0.15
    assert np.abs(drawn.std(0) - moons.std(0)).max() < 0.15


def test_nothing_is_said(moons, capfd):
    FlowDensity(**SMALL).fit(moons).score(moons)
    assert capfd.readouterr() == ("", "")


def test_global_generators_are_left_alone_and_seeds_repeat(moons):
    before = torch.get_rng_state().clone(), np.random.get_state()  # noqa: NPY002
    first, second = (FlowDensity(**SMALL).fit(moons) for _ in range(2))
    other = FlowDensity(**{**SMALL, "random_state": None}).fit(moons)
    drawn = first.sample(3)
    assert torch.equal(torch.get_rng_state(), before[0])
    after = np.random.get_state()  # noqa: NPY002
    assert np.array_equal(after[1], before[1][1])
    assert after[2:] == before[1][2:]
    assert np.array_equal(first.score_samples(moons), second.score_samples(moons))
    assert not np.allclose(first.score_samples(moons), other.score_samples(moons))
    assert not np.allclose(drawn, first.sample(3))
    assert np.array_equal(first.sample(3, random_state=4), second.sample(3, random_state=4))
    state = np.random.RandomState(1)
    assert not np.allclose(first.sample(3, random_state=state), first.sample(3, random_state=state))


def test_training_stops_by_the_held_out_rows_and_keeps_the_best_weights(moons):
    density = FlowDensity("maf", max_steps=900, check_every=10, patience=3, lr=0.02, random_state=0).fit(moons[:60])
    looks = {row["step"]: row["validation"] for row in density.history_ if "validation" in row}
    assert density.n_iter_ < 900
    assert density.best_step_ == min(looks, key=looks.get)
    assert density.n_iter_ == density.best_step_ + 3 * 10
    held = np.random.default_rng(0).permutation(60)[:6]  # the rows that the seed holds out
    assert -density.score(moons[held]) == pytest.approx(looks[density.best_step_], abs=1e-4)
    whole = FlowDensity(**{**SMALL, "validation_fraction": 0}).fit(moons)
    assert whole.n_iter_ == whole.best_step_ == 12
    assert "validation" not in whole.history_[-1]


def test_integer_weights_are_repeated_rows_in_units_and_held_out_loss(moons):
    counts = np.arange(len(moons)) % 4
    settings = {**SMALL, "max_steps": 1}
    weighted = FlowDensity(**settings).fit(moons, sample_weight=counts)
    with pytest.warns(UserWarning, match="rows repeat others"):
        repeated = FlowDensity(**settings).fit(np.repeat(moons, counts, 0))
    for name in ("loc", "scale"):
        one, other = (getattr(each.flow_.transform[0], name) for each in (weighted, repeated))
        assert torch.allclose(one, other, rtol=1e-12)
    flow, x = discrete.maf(2, layers=1), torch.from_numpy(moons).float()
    counts = torch.from_numpy(counts)
    weights = counts.double() * len(counts) / counts.sum()
    one = HeldOut(Rows(x, None, weights), MaximumLikelihood(), 0)(flow)
    other = HeldOut(Rows(x.repeat_interleave(counts, 0)), MaximumLikelihood(), 0)(flow)
    assert one == pytest.approx(other, rel=1e-6)
    scores = weighted.score_samples(moons)
    assert weighted.score(moons, sample_weight=counts.numpy()) == pytest.approx(np.average(scores, weights=counts))


def test_rows_of_no_weight_are_not_learned(moons):
    upper = moons[:, 1] > 0.25
    half = FlowDensity("maf", **{**SMALL, "max_steps": 100}, lr=1e-2).fit(moons, sample_weight=upper.astype(float))
    drawn = half.sample(1000, random_state=0)
    assert (drawn[:, 1] > 0).mean() > 0.9


def test_tools_of_scikit_learn_take_it(moons, tmp_path):
    density = FlowDensity(**SMALL)
    assert clone(density).get_params() == density.get_params()
    assert cross_val_score(density, moons, cv=2).shape == (2,)
    grid = {"flow": ["maf", "realnvp"], "flow_options": [{"layers": 1}], "max_steps": [1, 30], "lr": [1e-2]}
    search = GridSearchCV(density, grid, cv=2).fit(moons)
    assert search.best_params_["max_steps"] == 30
    pipe = make_pipeline(StandardScaler(), density).fit(moons)
    assert pipe.score_samples(moons).shape == (300,)
    fitted = density.fit(moons)
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(again.score_samples(moons), fitted.score_samples(moons))
    flow = cflow.load(cflow.save(fitted.flow_, tmp_path / "model"))
    assert flow.dtype == torch.float64
    assert np.array_equal(flow.log_prob(torch.tensor(moons)).detach().numpy(), fitted.score_samples(moons))


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("features", [1, 3])
def test_every_flow_is_fitted_by_its_name(name, features):
    X = np.random.default_rng(0).normal(size=(80, features))
    density = FlowDensity(name, max_steps=1, validation_fraction=0.0, random_state=0)
    scores = density.fit(X).score_samples(X[:5])
    assert np.isfinite(scores).all()
    assert np.isfinite(density.sample(2, random_state=0)).all()


def test_velocity_fields_are_trained_by_their_own_objectives(moons):
    options = {"flow_options": {"hidden": (32, 32)}, "max_steps": 150, "lr": 1e-2, "check_every": 50, "random_state": 0}
    for name, key in (("flow-matching", "loss"), ("ffjord", "nats")):
        density = FlowDensity(name, **{**options, "max_steps": 150 if key == "loss" else 12}).fit(moons)
        assert key in density.history_[-1]
        untrained = FlowDensity(name, **{**options, "max_steps": 1}).fit(moons)
        assert density.score(moons) > untrained.score(moons) + 0.03


def test_a_flow_of_ones_own(moons):
    def mine(features, context):
        return discrete.NormalizingFlow(
            discrete.Elementwise(discrete.Affine(), features), bases.StudentT(features, 5.0)
        )

    density = FlowDensity(mine, max_steps=5, random_state=0).fit(moons)
    assert isinstance(density.flow_.base, bases.StudentT)
    assert density.sample(4).shape == (4, 2)
    with pytest.raises(ValueError, match=r"event_shape and context_shape are \(\(3,\), None\), not \(\(2,\), None\)"):
        FlowDensity(lambda features, context: discrete.maf(3)).fit(moons)
    empirical = lambda features, context: cflow.ContinuousFlow(
        fields.MLP(2), bases.Empirical(torch.randn(5, 2)), path=paths.Linear()
    )
    with pytest.raises(ValueError, match="no density to fit"):
        FlowDensity(empirical).fit(moons)


def test_names_of_features_are_kept_and_compared(moons):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(moons, columns=["along", "up"])
    density = FlowDensity(**SMALL).fit(frame)
    assert density.feature_names_in_.tolist() == ["along", "up"]
    with pytest.raises(ValueError, match="the 2 features that fit was given: along, up"):
        density.score_samples(frame[["up", "along"]])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"flow": "nfs"}, ValueError, "did you mean 'nsf'"),
        ({"flow": "glow"}, ValueError, "The flows are nice, realnvp"),
        ({"flow": 3}, TypeError, "not a name or a function"),
        ({"flow": discrete.maf(2)}, TypeError, "not a name or a function"),
        ({"flow_options": {"layer": 3}}, TypeError, r"does not accept these .*'layers': 3"),
        ({"max_steps": 0}, ValueError, "max_steps=0.*1 or more"),
        ({"batch_size": 2.5}, ValueError, "batch_size=2.5.*whole number"),
        ({"patience": True}, ValueError, "patience=True"),
        ({"check_every": -1}, ValueError, "check_every=-1"),
        ({"validation_fraction": 1.0}, ValueError, r"share of the rows in \[0, 1\)"),
        ({"lr": 0.0}, ValueError, "lr=0.0.*pass lr > 0"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay=-1.0"),
        ({"random_state": -1}, ValueError, "random_state=-1"),
        ({"random_state": "seed"}, ValueError, "random_state='seed'"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(moons, options, error, message):
    with pytest.raises(error, match=message):
        FlowDensity(**{"max_steps": 2, **options}).fit(moons)


def test_bad_tables_are_refused_with_what_to_do(moons):
    density = FlowDensity(**SMALL)
    holed = moons.copy()
    holed[[4, 17], [0, 1]] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"fit\(X\): 2 of 300 rows have NaN or inf \(rows 4, 17\)"):
        density.fit(holed)
    constant = np.column_stack([moons, np.full(300, 7.0)])
    with pytest.raises(ValueError, match="column 2 is constant.*VarianceThreshold"):
        density.fit(constant)
    with pytest.raises(ValueError, match="n_samples = 3 rows are too few for 4 columns.*fewer columns"):
        density.fit(np.random.default_rng(0).normal(size=(3, 4)))
    with pytest.raises(ValueError, match="could not convert string.*encode categories"):
        density.fit([["a", "b"], ["c", "d"], ["e", "f"]])
    from scipy.sparse import csr_array

    with pytest.raises(TypeError, match=r"sparse matrix.*X.toarray\(\)"):
        density.fit(csr_array(moons))
    with pytest.raises(ValueError, match="Reshape your data"):
        density.fit(moons[:, 0])
    with pytest.raises(NotFittedError):
        density.score_samples(moons)
    for weights, message in (
        (np.ones(3), "there are 300 rows"),
        (-np.ones(300), "from -1 to -1; pass finite weights that are not negative"),
        (np.zeros(300), "from 0 to 0; .*not all zero"),
    ):
        with pytest.raises(ValueError, match=message):
            density.fit(moons, sample_weight=weights)
    density.fit(moons)
    assert np.isfinite(density.score(moons))
    with pytest.raises(ValueError, match="X has 3 features, but FlowDensity is expecting 2.*the 2 features that fit"):
        density.score_samples(constant)
    with pytest.raises(ValueError, match=r"score_samples\(X\): 2 of 300 rows"):
        density.score_samples(holed)
    with pytest.raises(ValueError, match=r"sample\(0\)"):
        density.sample(0)


def test_rounded_values_and_repeated_rows_are_warned_of(moons):
    density = FlowDensity(**SMALL)
    with pytest.warns(UserWarning, match=r"column 1 has whole, rounded or few .* \(smallest step 1\).*dequantise"):
        density.fit(np.column_stack([moons[:, 0], np.round(moons[:, 1] * 5)]))
    with pytest.warns(UserWarning, match=r"columns 0, 1 have whole, .* \(smallest step 0.1, 0.1\)"):
        density.fit(np.round(moons, 1))
    decimals = np.round(moons, 3)
    assert len(np.unique(decimals[:, 0])) > 250  # most values differ, and the message does not call them few alone
    with pytest.warns(UserWarning, match=r"rounded or few distinct values \(smallest step 0.001, 0.001\).*may not"):
        density.fit(decimals)
    with pytest.warns(UserWarning, match="150 of 300 rows repeat others.*sample_weight") as caught:
        density.fit(np.concatenate([moons[:150], moons[:150]]))
    assert caught[0].filename == __file__


def test_copies_are_told_from_rows_that_repeat_since_they_have_few_digits():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 3)) @ np.array([[1.0, 0.9, 0.5], [0.0, 0.4, 0.0], [0.0, 0.0, 0.2]])
    assert copied_rows(x) == 0
    for decimals in (0, 1, 2, 3):
        rounded = x.round(decimals)
        for columns in (1, 2, 3):
            assert copied_rows(rounded[:, :columns]) == 0
    assert 2000 - len(np.unique(x.round(1)[:, :2], axis=0)) > 100  # by chance
    for table in (x, x.round(3), np.column_stack([x.round(4), rng.poisson(3, 2000)])):
        for copies in (20, 200):
            table[-copies:] = table[:copies]
            assert copied_rows(table) == copies
        table[-200:] = table[0]
        assert copied_rows(table) == 200
    assert copied_rows(rng.integers(0, 3, (200, 3))) == 0
    digits = np.array([[float(f"{value:.2g}") for value in row] for row in np.exp(2 * rng.normal(size=(1000, 2)))])
    assert len(np.unique(digits, axis=0)) < 980
    assert copied_rows(digits) == 0
    density = FlowDensity(**SMALL)
    counts = np.column_stack([x[:300], rng.poisson(3, 300)])
    counts[-20:] = counts[:20]
    with pytest.warns(UserWarning, match="20 of 300 rows repeat"), pytest.warns(UserWarning, match="dequantise"):
        density.fit(counts)


def test_training_is_shown_where_it_is_asked_for(capsys, generator):
    x = torch.randn(60, 2, generator=generator).numpy()
    options = {"flow_options": {"layers": 1, "hidden": (8,)}, "max_steps": 4, "check_every": 2, "random_state": 0}
    quiet = FlowDensity("nsf", **options).fit(x)
    assert capsys.readouterr().err == ""
    told = FlowDensity("nsf", verbose=1, **options).fit(x)
    assert "4/4" in capsys.readouterr().err
    assert (quiet.score_samples(x) == told.score_samples(x)).all()


def wild_rows():
    """A correlated normal, of which four rows were raised to 1e8, and its mean log-density."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1500, 2)) @ [[1.0, 0.8], [0.0, 0.6]]
    fresh = rng.normal(size=(500, 2)) @ [[1.0, 0.8], [0.0, 0.6]]
    X[:4, 0] = 1e8
    return X, fresh, -np.log(2 * np.pi) - np.log(0.6) - 1


def test_rows_that_decide_the_scale_are_named_and_a_robust_one_stands_them():
    X, fresh, wanted = wild_rows()
    options = {"flow_options": {"layers": 2, "hidden": (16,)}, "max_steps": 150, "lr": 5e-3, "random_state": 0}
    with pytest.warns(UserWarning, match=r"a few rows decide the scale of columns \[0\].*standardise='robust'"):
        plain = FlowDensity("nsf", **options).fit(X)
    robust = FlowDensity("nsf", standardise="robust", **options).fit(X)
    assert plain.score(fresh) < wanted - 3
    assert robust.score(fresh) == pytest.approx(wanted, abs=0.2)
    assert np.isfinite(robust.score_samples(X)).all()
    with pytest.raises(ValueError, match="pass True, False or 'robust'"):
        FlowDensity("maf", standardise="median").fit(X)


@pytest.mark.parametrize("size", [1e200, 1e-200])
@pytest.mark.filterwarnings("error")
def test_units_near_the_ends_of_the_range_change_nothing_but_the_units(size):
    X = np.random.default_rng(0).normal(size=(200, 2))
    options = {"flow_options": {"layers": 1, "hidden": (4,)}, "max_steps": 2, "random_state": 0}
    plain, other = FlowDensity("maf", **options).fit(X), FlowDensity("maf", **options).fit(X * size)
    assert other.score(X * size) == pytest.approx(plain.score(X) - 2 * np.log(size))


@pytest.mark.filterwarnings("error")
def test_columns_beyond_the_range_are_named():
    X = np.random.default_rng(0).uniform(0.5, 1.0, size=(200, 2)) * [1.0, 1.7e308]
    with pytest.raises(ValueError, match=r"FlowDensity.fit: columns \[1\] are too large or too small"):
        FlowDensity("maf", max_steps=2).fit(X)


@pytest.mark.parametrize(
    "options",
    [
        {"standardise": np.array([1, 2])},
        {"standardise": [True, False]},
        {"lr": "fast"},
        {"weight_decay": None},
        {"validation_fraction": "auto"},
        {"validation_fraction": None},
    ],
)
def test_hyper_parameters_of_another_kind_are_refused_by_name(options):
    with pytest.raises(ValueError, match=rf"FlowDensity\(.*{next(iter(options))}=.*pass"):
        FlowDensity("maf", **options).fit(np.random.default_rng(0).normal(size=(50, 2)))


def test_the_warning_of_scale_speaks_of_the_estimator():
    X = 1e4 * np.random.default_rng(0).normal(size=(200, 2))
    with pytest.warns(UserWarning, match="are far from the draws.*standardise=True") as seen:
        FlowDensity("maf", standardise=False, max_steps=2).fit(X)
    assert seen[0].filename == __file__


def test_contexts_that_decide_the_scale_cost_nothing_where_it_is_robust():
    rng = np.random.default_rng(0)
    X, fresh = rng.normal(size=(1500, 1)), rng.normal(size=(500, 1))
    y, answer = X[:, 0] + 0.3 * rng.normal(size=1500), fresh[:, 0] + 0.3 * rng.normal(size=500)
    X[:4] = 1e7
    options = {"flow_options": {"layers": 2, "hidden": (16,)}, "max_steps": 150, "lr": 5e-3, "random_state": 0}
    robust = ConditionalFlowDensity("maf", standardise="robust", **options).fit(X, y)
    with pytest.warns(UserWarning, match="a few rows decide"):
        plain = ConditionalFlowDensity("maf", **options).fit(X, y)
    assert robust.score(fresh, answer) > plain.score(fresh, answer) + 0.8
    assert robust.flow_.log_prob(torch.zeros(2, 1).double(), torch.tensor([[0.0], [1e7]]).double()).isfinite().all()


def test_robust_units_count_rows_by_their_weights():
    values = np.array([[0.0], [1.0], [2.0], [3.0], [100.0]])
    weights = np.array([1.0, 3.0, 1.0, 2.0, 1.0])
    repeated = np.repeat(values, weights.astype(int), 0)
    for robust in (False, True):
        weighted = units_of(values, weights, robust, "Test")
        np.testing.assert_allclose(weighted, units_of(repeated, None, robust, "Test"))


def test_a_spike_is_named():
    rng = np.random.default_rng(0)
    X = np.column_stack([np.where(rng.random(300) < 0.4, 0.0, rng.normal(size=300)), rng.normal(size=300)])
    with pytest.warns(UserWarning, match="column 0 has one value in more than 5% of the rows"):
        FlowDensity("maf", max_steps=2, random_state=0).fit(X)
