"""Solves that are captured in CUDA graphs and replayed."""
