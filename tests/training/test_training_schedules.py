import pytest

from cflow.training import Constant, Cosine, Polynomial


@pytest.mark.parametrize("schedule", [Constant(5), Cosine(5), Polynomial(5, 2.0)])
def test_the_warmup_is_linear_and_reaches_one(schedule):
    assert [schedule(step, 50) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


@pytest.mark.parametrize(
    ("schedule", "quarter", "half", "end"),
    [
        (Constant(), 1, 1, 1),
        (Cosine(), 0.5 + 0.5**1.5, 0.5, 0),
        (Cosine(final=0.2), 0.2 + 0.8 * (0.5 + 0.5**1.5), 0.6, 0.2),
        (Polynomial(power=2.0), 0.75**2, 0.25, 0),
        (Polynomial(power=1.0, final=0.5), 0.875, 0.75, 0.5),
    ],
)
def test_the_decay_takes_the_values_of_its_formula(schedule, quarter, half, end):
    assert [schedule(step, 100) for step in (0, 25, 50, 100)] == pytest.approx([1, quarter, half, end])


def test_a_warmup_longer_than_the_run_is_cut_short():
    assert Cosine(warmup=10)(3, 4) == pytest.approx(0.4)
    assert Cosine(warmup=10)(10, 10) == 1.0


@pytest.mark.parametrize(
    "build",
    [lambda: Cosine(-1), lambda: Cosine(final=1.5), lambda: Polynomial(power=0.0), lambda: Polynomial(final=-1.0)],
)
def test_impossible_schedules_are_refused(build):
    with pytest.raises(ValueError, match=r"\(.*=.*\): .*pass"):
        build()
