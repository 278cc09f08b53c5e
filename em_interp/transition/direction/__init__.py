"""Turns of the adapter's direction."""
