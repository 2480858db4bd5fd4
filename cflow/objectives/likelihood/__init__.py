"""The log-density of data."""
