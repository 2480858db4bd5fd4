"""Methods on a grid that is laid before the first step: no error control, no host reads."""
