"""Transitions of single signals along a run: gradient norm, adapter norm, lock-in."""
