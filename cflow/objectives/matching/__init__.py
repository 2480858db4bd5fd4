"""Regression of a field on a path: flow matching and related objectives."""
