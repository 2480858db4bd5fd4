"""Variational inference: a flow learns a density that is known up to a constant, from its own samples."""
