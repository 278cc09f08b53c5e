"""Runs of different bases beside each other, by what does not depend on coordinates."""
