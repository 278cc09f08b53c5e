"""Onsets of behaviour."""
