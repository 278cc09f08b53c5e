"""The Hub: paths read from it, runs published on it."""
