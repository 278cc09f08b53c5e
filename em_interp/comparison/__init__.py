"""Several runs beside each other: directions within one base, and how well their transition steps agree."""
