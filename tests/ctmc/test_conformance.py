"""Every source, schedule, rate and sampler against enumeration."""

import pytest
import torch

from cflow import ctmc
from cflow.testing import check_token_flow

SOURCES = {
    "mask": lambda: ctmc.Mask(2, 3),
    "uniform": lambda: ctmc.Uniform(2, 3),
    "marginal": lambda: ctmc.Marginal(2, torch.tensor([0.5, 0.3, 0.2])),
    "by position": lambda: ctmc.Marginal(2, torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])),
    "mask and uniform": lambda: ctmc.MaskAndUniform(2, 3, share=0.4),
}
SCHEDULES = {
    "linear": ctmc.Linear(),
    "cosine": ctmc.Cosine(),
    "polynomial": ctmc.Polynomial(2.0),
    "root": ctmc.Polynomial(0.7),
    "log-linear": ctmc.LogLinear(0.1),
    "by position": ctmc.Polynomial((1.0, 2.0)),
}
RATES = {
    "default": None,
    "minimal": ctmc.MinimalJump(),
    "detailed balance": ctmc.DetailedBalance(2.0),
    "corrector": ctmc.Corrector(2.0),
    "time reversal": ctmc.TimeReversal(),
    "campbell": ctmc.CampbellRate(),
}
# Sampler, largest total variation of 4000 draws: noise 0.02 to 0.03, the rest is the error of 32 steps.
SAMPLERS = {
    "analytic": (ctmc.Analytic(32), 0.06),
    "analytic, time reversal": (ctmc.Analytic(32, rate=ctmc.TimeReversal()), 0.06),
    "analytic, other grid": (ctmc.Analytic(32, schedule=ctmc.Cosine()), 0.06),
    "analytic, detailed balance": (ctmc.Analytic(48, rate=ctmc.DetailedBalance(2.0)), 0.07),
    "analytic, corrector": (ctmc.Analytic(48, rate=ctmc.Corrector(1.0)), 0.08),
    "euler": (ctmc.Euler(48), 0.07),
    "euler, linear": (ctmc.Euler(48, linear=True), 0.07),
    "tau-leaping": (ctmc.TauLeaping(64), 0.08),
    "gibbs": (ctmc.PredictorCorrector(ctmc.Analytic(24), share=0.5), 0.06),
    "forward-backward": (ctmc.PredictorCorrector(ctmc.Analytic(24), share=0.5, kind="forward-backward"), 0.06),
}
HIDING = {
    "first hitting": (ctmc.FirstHitting(), 0.05),
    "remasking, cap": (ctmc.Remasking(32, eta=0.1), 0.08),
    "remasking, rescale": (ctmc.Remasking(32, kind="rescale", eta=0.2), 0.08),
    "remasking, loop": (ctmc.Remasking(24, eta=0.1, loop=0.8, loop_steps=8), 0.08),
}


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("source", SOURCES)
def test_every_rate_is_right_for_every_source_and_schedule(source, schedule, rate):
    made, path = SOURCES[source](), ctmc.Mixture(SCHEDULES[schedule], rate=RATES[rate])
    exists = source != "mask and uniform" or rate in ("default", "time reversal")
    negative = source == "mask and uniform" and schedule == "root"
    if not exists or negative:
        with pytest.raises(ValueError, match="moves in time|negative rates"):
            path.bind(made)
        return
    check_token_flow(made, path, draws=400)


CASES = [(source, sampler) for source in ("mask", "uniform") for sampler in SAMPLERS]
CASES += [
    (source, sampler) for source in SOURCES for sampler in ("analytic", "euler", "gibbs") if source not in CASES[0]
]


@pytest.mark.parametrize(("source", "sampler"), sorted({*CASES}))
def test_every_sampler_draws_the_law(source, sampler):
    chosen, tolerance = SAMPLERS[sampler]
    check_token_flow(SOURCES[source](), ctmc.Mixture(ctmc.Linear()), chosen, draws=2500, tolerance=tolerance + 0.01)


@pytest.mark.parametrize("sampler", HIDING)
def test_samplers_that_hide_tokens_draw_the_law(sampler):
    chosen, tolerance = HIDING[sampler]
    check_token_flow(ctmc.Mask(2, 3), ctmc.Mixture(ctmc.Cosine()), chosen, draws=4000, tolerance=tolerance)


def test_thinning_is_exact_for_every_source():
    for source in (ctmc.Mask(2, 2), ctmc.Marginal(2, torch.tensor([0.7, 0.3]))):
        path = ctmc.Mixture(rate=ctmc.MinimalJump())
        check_token_flow(source, path, ctmc.Thinning(0.01), draws=1500, tolerance=0.06)


def test_given_data_are_a_source(generator):
    rows = torch.tensor([[0, 1], [1, 0], [2, 2]])
    check_token_flow(ctmc.Given(rows, 3), ctmc.Mixture(), ctmc.Analytic(8), draws=100)
    drawn = ctmc.Given(rows, 3).sample((3000,), generator=generator)
    assert all(abs(float((drawn == row).all(1).double().mean()) - 1 / 3) < 0.05 for row in rows)


def test_first_hitting_needs_no_schedule_of_one_kind():
    path = ctmc.Mixture(ctmc.Polynomial((0.5, 3.0)))
    check_token_flow(ctmc.Mask(2, 3), path, ctmc.FirstHitting(), draws=4000, tolerance=0.05)
