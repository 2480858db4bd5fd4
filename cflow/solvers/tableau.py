"""Butcher tableaus: the coefficients that make one Runge-Kutta method differ from another."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "BOSH3", "DOPRI5", "DOPRI8", "EULER", "HEUN", "HEUN3", "MIDPOINT", "RALSTON", "RK4", "THREE_EIGHTHS", "TSIT5",
    "Combination", "Tableau", "stages_of",
]  # fmt: skip


class Combination(NamedTuple):
    r"""Stores :math:`\sum_j w_j k_j` as :math:`w_l (k_l + \sum_{j \ne l} (w_j / w_l) k_j)`.

    The bracket costs one fused multiply-add per further slope, and the last addition to the state applies the factor
    :math:`w_l h`. So a stage with n slopes takes n kernels, and only one of them rounds at the size of the state.
    """

    lead: int
    weight: float
    rest: tuple[tuple[int, float], ...]

    def bracket(self, slopes: list[Tensor]) -> Tensor:
        """Computes the bracket from one tensor per stage."""
        total = slopes[self.lead]
        for other, ratio in self.rest:
            total = torch.add(total, slopes[other], alpha=ratio)
        return total

    def advance(self, y: Tensor, slopes: list[Tensor], h: float) -> Tensor:
        """Computes ``y + h sum_j w_j k_j``."""
        return torch.add(y, self.bracket(slopes), alpha=self.weight * h)

    @property
    def stages(self) -> set[int]:
        """The stages that have a weight."""
        return {self.lead, *(index for index, _ in self.rest)}


def stages_of(slopes: list[list[Tensor]], part: int) -> list[Tensor]:
    """Returns the tensors of one part of the state, stage by stage, from a list of parts per stage."""
    return [parts[part] for parts in slopes]


def _combination(weights: tuple[Fraction, ...]) -> Combination | None:
    """Builds the combination of the nonzero weights; None if all are zero."""
    used = [(index, weight) for index, weight in enumerate(weights) if weight]
    if not used:
        return None
    lead, scale = used[0]
    return Combination(lead, float(scale), tuple((index, float(weight / scale)) for index, weight in used[1:]))


@dataclass(frozen=True)
class Tableau:
    r"""Holds the coefficients of an explicit Runge-Kutta method as exact fractions.

    .. math:: k_i = f\Big(t + c_i h,\; y + h \sum_{j < i} a_{ij} k_j\Big), \qquad y^+ = y + h \sum_i b_i k_i

    The continuous extension, if there is one, computes states inside a step:

    .. math:: y(t + \theta h) \approx y + h \sum_i b_i(\theta) k_i, \qquad b_i(1) = b_i

    Args:
        name: the name of the method.
        a: one row per stage; row i has i entries.
        b: the weights of the step.
        c: the stage times in a step of length one.
        order: the order of the method.
        error: the weights :math:`e_i = b_i - \hat b_i` of the local error estimate :math:`h \sum_i e_i k_i`; None
            without an embedded method.
        embedded_order: the order of the embedded method.
        dense: for each stage, the coefficients of :math:`\theta, \theta^2, \ldots` in :math:`b_i(\theta)`; None without
            an extension.
        dense_order: the order of the extension.
        rounded: whether the published coefficients are decimals or rounded fractions, so that the order conditions hold
            only to 1e-15.

    Raises:
        ValueError: if the sizes do not match, a row of ``a`` does not sum to its ``c``, ``b`` does not sum to one, or
            the continuous extension does not end at the step.

    Source: Solving Ordinary Differential Equations I, Hairer, Norsett and Wanner, 1993, chapter II.

    Example:
        >>> MIDPOINT.order, MIDPOINT.fsal, DOPRI5.fsal
        (2, False, True)
    """

    name: str
    a: tuple[tuple[Fraction, ...], ...]
    b: tuple[Fraction, ...]
    c: tuple[Fraction, ...]
    order: int
    error: tuple[Fraction, ...] | None = None
    embedded_order: int | None = None
    dense: tuple[tuple[Fraction, ...], ...] | None = None
    dense_order: int | None = None
    rounded: bool = False

    def __post_init__(self):
        slack = Fraction(1, 10**15) * 5 if self.rounded else 0
        if not len(self.a) == len(self.b) == len(self.c) or any(len(row) != i for i, row in enumerate(self.a)):
            raise ValueError(
                f"Tableau({self.name!r}): {len(self.a)} rows of lengths {[len(row) for row in self.a]} with "
                f"{len(self.b)} weights and {len(self.c)} nodes are not an explicit method; row i must have i entries."
            )
        if any(abs(sum(row) - node) > slack for row, node in zip(self.a, self.c)) or abs(sum(self.b) - 1) > slack:
            raise ValueError(
                f"Tableau({self.name!r}): a row does not sum to its node, or the weights do not sum to 1; check the "
                f"coefficients against the source."
            )
        if (self.error is None) != (self.embedded_order is None) or (self.error and len(self.error) != len(self.b)):
            raise ValueError(
                f"Tableau({self.name!r}): pass both error (one weight per stage) and embedded_order, or neither."
            )
        if (self.dense is None) != (self.dense_order is None) or (
            self.dense
            and (
                len(self.dense) != len(self.b)
                or any(abs(sum(row) - weight) > slack for row, weight in zip(self.dense, self.b))
            )
        ):
            raise ValueError(
                f"Tableau({self.name!r}): pass both dense (one polynomial per stage, equal to b at 1) and dense_order, "
                f"or neither."
            )

    @cached_property
    def fsal(self) -> bool:
        """Whether the last stage of a step is the first stage of the next one."""
        return len(self.a) > 1 and self.a[-1] == self.b[:-1] and self.b[-1] == 0 and self.c[-1] == 1

    @cached_property
    def stages(self) -> tuple[Combination | None, ...]:
        """The combination of earlier slopes for each stage; None at the start of the step."""
        return tuple(_combination(row) for row in self.a)

    @cached_property
    def step(self) -> Combination:
        """The combination of the slopes for the step."""
        return _combination(self.b)

    @cached_property
    def estimate(self) -> Combination | None:
        """The combination of the slopes for the error estimate; None without an embedded method."""
        return _combination(self.error) if self.error else None

    @cached_property
    def table(self) -> tuple[list[float], ...]:
        """The rows of ``a`` as floats, padded with zeros to the number of stages, then ``b``."""
        size = len(self.b)
        return tuple([*map(float, row), *[0.0] * (size - len(row))] for row in (*self.a, self.b))

    @cached_property
    def errors(self) -> list[float]:
        """The weights of the error estimate as floats."""
        return [float(weight) for weight in self.error]

    @cached_property
    def extension(self) -> list[list[float]]:
        """The polynomials of the continuous extension as floats."""
        return [[float(coefficient) for coefficient in row] for row in self.dense]

    @cached_property
    def nodes(self) -> tuple[float, ...]:
        """The stage times in a step of length one, as floats."""
        return tuple(float(node) for node in self.c)


def _fractions(text: str) -> tuple[Fraction, ...]:
    """Reads a row of fractions."""
    return tuple(Fraction(word) for word in text.split())


def _rows(*texts: str) -> tuple[tuple[Fraction, ...], ...]:
    """Reads the lower triangle of a tableau, one string per stage."""
    return tuple(_fractions(text) for text in texts)


def _product(*factors: tuple) -> list[Fraction]:
    """Multiplies polynomials, given by their coefficients in increasing order."""
    result = [Fraction(1)]
    for factor in factors:
        terms = [Fraction(0)] * (len(result) + len(factor) - 1)
        for i, one in enumerate(result):
            for j, other in enumerate(factor):
                terms[i + j] += one * Fraction(other)
        result = terms
    return result


def _dense(*polynomials: list[Fraction]) -> tuple[tuple[Fraction, ...], ...]:
    """Drops the constant terms, which are zero, and pads all polynomials to one degree."""
    degree = max(map(len, polynomials))
    return tuple((*each[1:], *[Fraction(0)] * (degree - len(each))) for each in polynomials)


def _hermite(b: tuple[Fraction, ...], bulge: tuple[Fraction, ...] | None = None):
    """Returns the cubic through the ends of a step with the slopes there, plus ``bulge`` times ``(u (1 - u))^2``.

    The first and the last stage must be the slopes at the ends.
    """
    polynomials = []
    for stage, weight in enumerate(b):
        first, last = Fraction(stage == 0), Fraction(stage == len(b) - 1)
        cubic = [Fraction(0), first, 3 * weight - 2 * first - last, first + last - 2 * weight]
        more = _product((bulge[stage],), (0, 0, 1), (1, -2, 1)) if bulge else [Fraction(0)]
        more, cubic = (each + [Fraction(0)] * (5 - len(each)) for each in (more, cubic))
        polynomials.append([one + other for one, other in zip(cubic, more)])
    return _dense(*polynomials)


EULER = Tableau("euler", a=_rows(""), b=_fractions("1"), c=_fractions("0"), order=1)

MIDPOINT = Tableau("midpoint", a=_rows("", "1/2"), b=_fractions("0 1"), c=_fractions("0 1/2"), order=2)

HEUN = Tableau(
    "heun",
    a=_rows("", "1"),
    b=_fractions("1/2 1/2"),
    c=_fractions("0 1"),
    order=2,
    error=_fractions("-1/2 1/2"),
    embedded_order=1,
)

RALSTON = Tableau("ralston", a=_rows("", "2/3"), b=_fractions("1/4 3/4"), c=_fractions("0 2/3"), order=2)

RK4 = Tableau(
    "rk4",
    a=_rows("", "1/2", "0 1/2", "0 0 1"),
    b=_fractions("1/6 1/3 1/3 1/6"),
    c=_fractions("0 1/2 1/2 1"),
    order=4,
)

# Heun's method of order 3 and Kutta's 3/8 rule: Hairer, Norsett and Wanner, II.1.
HEUN3 = Tableau("heun3", a=_rows("", "1/3", "0 2/3"), b=_fractions("1/4 0 3/4"), c=_fractions("0 1/3 2/3"), order=3)
THREE_EIGHTHS = Tableau(
    "three_eighths",
    a=_rows("", "1/3", "-1/3 1", "1 -1 1"),
    b=_fractions("1/8 3/8 3/8 1/8"),
    c=_fractions("0 1/3 2/3 1"),
    order=4,
)

# Bogacki and Shampine, A 3(2) pair of Runge-Kutta formulas, 1989; the continuous extension is the Hermite cubic.
BOSH3 = Tableau(
    "bosh3",
    a=_rows("", "1/2", "0 3/4", "2/9 1/3 4/9"),
    b=_fractions("2/9 1/3 4/9 0"),
    c=_fractions("0 1/2 3/4 1"),
    order=3,
    error=_fractions("-5/72 1/12 1/9 -1/8"),
    embedded_order=2,
    dense=_hermite(_fractions("2/9 1/3 4/9 0")),
    dense_order=3,
)

# Dormand and Prince, A family of embedded Runge-Kutta formulae, 1980; the continuous extension is Shampine's, with the
# weights that Hairer, Norsett and Wanner give for it (II.6).
_DOPRI5_WEIGHTS = _fractions("35/384 0 500/1113 125/192 -2187/6784 11/84 0")
DOPRI5 = Tableau(
    "dopri5",
    a=_rows(
        "",
        "1/5",
        "3/40 9/40",
        "44/45 -56/15 32/9",
        "19372/6561 -25360/2187 64448/6561 -212/729",
        "9017/3168 -355/33 46732/5247 49/176 -5103/18656",
        "35/384 0 500/1113 125/192 -2187/6784 11/84",
    ),
    b=_DOPRI5_WEIGHTS,
    c=_fractions("0 1/5 3/10 4/5 8/9 1 1"),
    order=5,
    error=_fractions("71/57600 0 -71/16695 71/1920 -17253/339200 22/525 -1/40"),
    embedded_order=4,
    dense=_hermite(
        _DOPRI5_WEIGHTS,
        _fractions(
            "-12715105075/11282082432 0 87487479700/32700410799 -10690763975/1880347072 701980252875/199316789632 "
            "-1453857185/822651844 69997945/29380423"
        ),
    ),
    dense_order=4,
)

# Tsitouras, Runge-Kutta pairs of order 5(4) satisfying only the first column simplifying assumption, 2011.
TSIT5 = Tableau(
    "tsit5",
    a=_rows(
        "",
        "0.161",
        "-0.008480655492356989 0.335480655492357",
        "2.8971530571054935 -6.359448489975075 4.3622954328695815",
        "5.325864828439257 -11.748883564062828 7.4955393428898365 -0.09249506636175525",
        "5.86145544294642 -12.92096931784711 8.159367898576159 -0.071584973281401 -0.028269050394068383",
        "0.09646076681806523 0.01 0.4798896504144996 1.379008574103742 -3.290069515436081 2.324710524099774",
    ),
    b=_fractions(
        "0.09646076681806523 0.01 0.4798896504144996 1.379008574103742 -3.290069515436081 2.324710524099774 0"
    ),
    c=_fractions("0 0.161 0.327 0.9 0.9800255409045097 1 1"),
    order=5,
    error=_fractions(
        "-0.00178001105222577714 -0.0008164344596567469 0.007880878010261995 -0.1447110071732629 0.5823571654525552 "
        "-0.45808210592918697 0.015151515151515152"
    ),
    embedded_order=4,
    dense=_dense(
        _product(
            (0, "-1.0530884977290216"),
            ("-1.3299890189751412", 1),
            ("0.7139816917074209", "-1.4364028541716351", 1),
        ),
        _product((0, 0, "0.1017"), ("1.2949852507374631", "-2.1966568338249754", 1)),
        _product((0, 0, "2.490627285651252793"), ("1.57803468208092486", "-2.38535645472061657", 1)),
        _product((0, 0, "-16.54810288924490272"), ("-1.21712927295533244", 1), ("-0.61620406037800089", 1)),
        _product((0, 0, "47.37952196281928122"), ("-1.203071208372362603", 1), ("-0.658047292653547382", 1)),
        _product((0, 0, "-34.87065786149660974"), ("-1.2", 1), ("-0.666666666666666667", 1)),
        _product((0, 0, "2.5"), (-1, 1), ("-0.6", 1)),
    ),
    dense_order=4,
    rounded=True,
)

_DOPRI8_WEIGHTS = _fractions(
    "14005451/335480064 0 0 0 0 -59238493/1068277825 181606767/758867731 561292985/797845732 -1041891430/1371343529 "
    "760417239/1151165299 118820643/751138087 -528747749/2220607170 1/4"
)
# Prince and Dormand, High order embedded Runge-Kutta formulae, 1981: RK8(7)13M, published without an extension.
DOPRI8 = Tableau(
    "dopri8",
    a=_rows(
        "",
        "1/18",
        "1/48 1/16",
        "1/32 0 3/32",
        "5/16 0 -75/64 75/64",
        "3/80 0 0 3/16 3/20",
        "29443841/614563906 0 0 77736538/692538347 -28693883/1125000000 23124283/1800000000",
        "16016141/946692911 0 0 61564180/158732637 22789713/633445777 545815736/2771057229 -180193667/1043307555",
        "39632708/573591083 0 0 -433636366/683701615 -421739975/2616292301 100302831/723423059 790204164/839813087 "
        "800635310/3783071287",
        "246121993/1340847787 0 0 -37695042795/15268766246 -309121744/1061227803 -12992083/490766935 "
        "6005943493/2108947869 393006217/1396673457 123872331/1001029789",
        "-1028468189/846180014 0 0 8478235783/508512852 1311729495/1432422823 -10304129995/1701304382 "
        "-48777925059/3047939560 15336726248/1032824649 -45442868181/3398467696 3065993473/597172653",
        "185892177/718116043 0 0 -3185094517/667107341 -477755414/1098053517 -703635378/230739211 "
        "5731566787/1027545527 5232866602/850066563 -4093664535/808688257 3962137247/1805957418 65686358/487910083",
        "403863854/491063109 0 0 -5068492393/434740067 -411421997/543043805 652783627/914296604 "
        "11173962825/925320556 -13158990841/6184727034 3936647629/1978049680 -160528059/685178525 "
        "248638103/1413531060 0",
    ),
    b=_DOPRI8_WEIGHTS,
    c=_fractions("0 1/18 1/12 1/8 5/16 3/8 59/400 93/200 5490023248/9719169821 13/20 1201146811/1299019798 1 1"),
    order=8,
    error=tuple(
        high - low
        for high, low in zip(
            _DOPRI8_WEIGHTS,
            _fractions(
                "13451932/455176623 0 0 0 0 -808719846/976000145 1757004468/5645159321 656045339/265891186 "
                "-3867574721/1518517206 465885868/322736535 53011238/667516719 2/45 0"
            ),
        )
    ),
    embedded_order=7,
    rounded=True,
)
