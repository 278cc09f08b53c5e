"""Runs of different bases compared, by what does not depend on coordinates."""
