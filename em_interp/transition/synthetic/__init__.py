"""Paths, curves and logs with a planted truth: what every claim about locating a transition is measured on."""
