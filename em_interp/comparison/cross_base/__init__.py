"""Runs of different bases, compared by measures that do not depend on coordinates."""
