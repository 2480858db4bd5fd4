import pytest

from cflow.registry import lookup, name_of
from cflow.solvers import METHODS, RK4, Dopri5, Heun, Solver, by_name


def test_names_give_solvers_with_their_options():
    assert by_name("rk4", steps=3) == RK4(3)
    assert by_name("dopri5", rtol=1e-3) == Dopri5(rtol=1e-3)


def test_every_method_is_a_registered_solver():
    for name, method in METHODS.items():
        assert issubclass(method, Solver)
        assert method.__name__.lower() == name.replace("_", "")
        assert lookup(name_of(method)) is method


def test_a_wrong_name_is_answered_with_the_right_ones():
    with pytest.raises(ValueError, match="did you mean 'dopri5'") as caught:
        by_name("dopri45")
    assert all(name in str(caught.value) for name in METHODS)
    with pytest.raises(ValueError, match="no such solver"):
        by_name("zzz")


def test_a_wrong_option_is_answered_with_the_right_ones():
    with pytest.raises(ValueError, match="did you mean 'steps'"):
        by_name("euler", step=3)


def test_a_solver_shows_what_was_chosen():
    class Bare(Solver):
        def _solve(self, problem):
            return None

    assert repr(Dopri5()) == "Dopri5()"
    assert repr(Dopri5(1e-4, per_sample=False)) == "Dopri5(rtol=0.0001, per_sample=False)"
    assert repr(Heun(nfe=8)) == "Heun(nfe=8)"
    assert "Bare object" in repr(Bare())
