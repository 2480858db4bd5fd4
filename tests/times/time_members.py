"""All laws of times of the package."""

from cflow.times import (
    Antithetic,
    ArgmaxClock,
    Beta,
    CosMap,
    Ends,
    Exponential,
    LogitNormal,
    Mode,
    Shifted,
    Stratified,
    Uniform,
)

PLAIN = [
    Uniform(),
    LogitNormal(),
    LogitNormal(0.5, 0.8),
    Mode(1.29),
    Mode(-0.9),
    CosMap(),
    Ends(4.0),
    Ends(0.1),
    Beta(1.0, 1.5),
    Beta(2.0, 1.0),
    Beta(0.6, 2.5),
    Shifted(Uniform(), 3.0),
    Shifted(LogitNormal(0.3, 1.2), 0.4),
    ArgmaxClock(2),
    Exponential(0.25),
    Exponential(3.0),
    ArgmaxClock(50_000),
]
NESTED = [
    Stratified(),
    Stratified(LogitNormal(-0.5, 1.0)),
    Antithetic(),
    Antithetic(Beta(0.6, 2.5)),
    Antithetic(Stratified(CosMap())),
    Shifted(Stratified(), 2.0),
    Stratified(Shifted(CosMap(), 2.0)),
    Stratified(ArgmaxClock(27)),
]
