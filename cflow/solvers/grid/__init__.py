"""Methods on a grid that is fixed before the first step: no error control, no host reads."""
