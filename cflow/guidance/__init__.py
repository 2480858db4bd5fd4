"""Guidance: maps a velocity field to one that follows its condition more closely.

===================  ====================================================================================
name                 what it needs
===================  ====================================================================================
``ClassifierFree``   a flow that was trained with ``condition_dropout``
``CFGZeroStar``      the same; better in the first steps of a flow that is not fully trained
``AutoGuidance``     a second, worse network of the same task
===================  ====================================================================================
"""

from cflow.guidance.guidance import AutoGuidance, CFGZeroStar, ClassifierFree, Guidance, Guided

__all__ = ["AutoGuidance", "CFGZeroStar", "ClassifierFree", "Guidance", "Guided"]
