"""Alarms while a run trains."""
