import numpy as np
import pytest

from cflow.density import dequantise
from cflow.density.lattice import lattice_steps


def test_steps_are_found_where_there_is_a_lattice():
    rng = np.random.default_rng(0)
    columns = {
        "counts": (rng.poisson(3.0, 500), 1.0),
        "even": (2 * rng.integers(0, 9, 500), 2.0),
        "tenths": (np.round(rng.normal(size=500), 1), 0.1),
        "continuous": (rng.normal(size=500), 0.0),
        "float32": (rng.normal(size=500).astype(np.float32), 0.0),
        "constant": (np.full(500, 3.5), 0.0),
        "large whole numbers": (rng.integers(0, 10**9, 500), None),
    }
    steps = lattice_steps(np.column_stack([values for values, _ in columns.values()]).astype(float))
    for (name, (_, wanted)), step in zip(columns.items(), steps):
        assert step > 0 if wanted is None else step == pytest.approx(wanted, abs=1e-9), name


def test_noise_fills_the_steps_and_nothing_else():
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.poisson(3.0, 2000), rng.normal(size=2000)])
    spread = dequantise(X, random_state=0)
    noise = (spread - X)[:, 0]
    assert np.array_equal(spread[:, 1], X[:, 1])
    assert np.array_equal(np.round(spread[:, 0]), X[:, 0])
    assert noise.min() < -0.49
    assert noise.max() > 0.49
    assert np.array_equal(dequantise(X, random_state=0), spread)
    assert not np.array_equal(dequantise(X), dequantise(X))
    assert np.abs(dequantise(X[:5], steps=[4.0, 0.0], random_state=1) - X[:5])[:, 0].max() > 0.5


def test_one_column_is_spread_as_a_table_of_one_column():
    y = np.arange(20.0)
    for steps in (None, 0.5):
        table = dequantise(y[:, None], steps=None if steps is None else [steps], random_state=0)
        assert np.array_equal(dequantise(y, steps=steps, random_state=0), table[:, 0])


def test_wrong_tables_and_steps_are_refused():
    with pytest.raises(ValueError, match="X must be a table"):
        dequantise(1.0)
    with pytest.raises(ValueError, match=r"rows 1\)"):
        dequantise([[1.0], [np.nan]])
    with pytest.raises(ValueError, match="one step >= 0 for each of 2 columns"):
        dequantise([[1.0, 2.0]], steps=[1.0])
    with pytest.raises(ValueError, match="one step >= 0"):
        dequantise([[1.0, 2.0]], steps=[1.0, -1.0])


def test_neither_outliers_nor_heavy_tails_make_a_lattice_or_hide_one():
    rng = np.random.default_rng(0)
    first = np.arange(4000) < 4
    normal, tenths, counts = rng.normal(size=4000), np.round(rng.normal(size=4000), 1), rng.poisson(3.0, 4000)
    columns = {
        "outliers": (np.where(first, 1e8, normal), 0.0),
        "Cauchy": (rng.standard_cauchy(4000) * 1e6, 0.0),
        "heavier": (rng.standard_t(0.25, 4000), 0.0),
        "log-normal": (np.exp(5 * normal), 0.0),
        "two far groups": (np.where(np.arange(4000) % 2, 1e8, 0.0) + normal, 0.0),
        "mostly zero": (np.where(rng.random(4000) < 0.6, 0.0, normal), 0.0),
        "seconds since 1970": (1.7e9 + 1e5 * rng.random(4000), 0.0),
        "counts with outliers": (np.where(first, 1e8, counts), 1.0),
        "tenths with outliers": (np.where(first, 1e8 + 0.033, tenths), 0.1),
        "tenths by arithmetic": (0.1 * rng.integers(-50, 50, 4000), 0.1),
        "hundreds, but for three": (100.0 * rng.integers(0, 1000, 4000) + 17 * (np.arange(4000) < 3), 100.0),
        "whole Cauchy": (np.round(1000 * rng.standard_cauchy(4000)), 1.0),
        "uneven categories": (rng.choice([0.5, 1.7, 3.1], 4000), 1.2),
    }
    steps = lattice_steps(np.column_stack([values for values, _ in columns.values()]))
    for (name, (_, wanted)), step in zip(columns.items(), steps):
        assert step == pytest.approx(wanted, rel=1e-6), name


def test_the_last_place_of_numbers_is_no_lattice():
    rng = np.random.default_rng(0)
    for values in (
        1.7e9 + rng.random(500),
        1.7e9 + rng.uniform(0, 600, 200_000),
        2460000.5 + rng.uniform(0, 1, 100_000),
        1e8 + 1e-3 * rng.normal(size=500),
        (1e4 + rng.random(300)).astype(np.float32).astype(float),
    ):
        assert lattice_steps(values[:, None]) == 0.0
    milliseconds = 1.7e9 + np.round(rng.random(500), 3)
    assert lattice_steps(milliseconds[:, None]) == pytest.approx(0.001, rel=1e-3)


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_decimals_that_came_through_float32_are_a_lattice(digits):
    rng = np.random.default_rng(0)
    size = 10.0 ** (2 - digits)
    for values in (
        rng.uniform(-2 * size, 4 * size, 300),
        size * np.exp(rng.normal(size=300)),
        size * rng.normal(size=300),
    ):
        single = np.round(values, digits).astype(np.float32).astype(float)
        assert lattice_steps(single[:, None]) == pytest.approx(10.0**-digits, rel=1e-6)
        assert lattice_steps(values.astype(np.float32).astype(float)[:, None]) == 0.0


@pytest.mark.parametrize(("offset", "digits"), [(0.0, 1), (0.0, 2), (1e4, 1)])
def test_decimals_of_which_many_occur_again_have_their_step_through_float32_too(offset, digits):
    values = np.round(offset + np.random.default_rng(0).normal(size=5000), digits)
    for column in (values, values.astype(np.float32).astype(float)):
        assert lattice_steps(column[:, None]) == pytest.approx(10.0**-digits, rel=1e-6)


def test_outliers_are_not_moved():
    x = np.random.default_rng(0).normal(size=(4000, 1))
    x[:4] = 1e8
    assert np.array_equal(dequantise(x, random_state=0), x)
