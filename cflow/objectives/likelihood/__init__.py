"""Objectives that maximise the log-density of data."""
