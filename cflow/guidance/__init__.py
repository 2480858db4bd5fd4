"""Guidance: maps a velocity field to one that follows its condition more closely, or has better quality.

A guidance is called with a field and returns the guided field: ``ClassifierFree(2.0)(field)``. Pass it to a flow as
``flow.sample((64,), context, guidance=ClassifierFree(2.0))``.

| guidance                | what it needs                                                           |
|-------------------------|-------------------------------------------------------------------------|
| :class:`ClassifierFree` | a flow that was trained with ``condition_dropout``                      |
| :class:`CFGZeroStar`    | the same; better in the first steps of a flow that is not fully trained |
| :class:`AutoGuidance`   | a second, worse network for the same task                               |

For token flows, :class:`ClassifierFree` mixes the logits of the posterior, and there are two more:

| guidance                   | what it needs                                                        |
|----------------------------|----------------------------------------------------------------------|
| :class:`PredictorFree`     | the same; also changes how fast tokens are revealed                  |
| :class:`PredictorGuidance` | a classifier of noisy tokens; the flow may be unconditional          |
"""

from cflow.guidance.guidance import AutoGuidance, CFGZeroStar, ClassifierFree, Guidance, Guided
from cflow.guidance.tokens import PredictorFree, PredictorGuidance

__all__ = [
    "AutoGuidance",
    "CFGZeroStar",
    "ClassifierFree",
    "Guidance",
    "Guided",
    "PredictorFree",
    "PredictorGuidance",
]
