"""Solves that CUDA graphs hold and replay."""
