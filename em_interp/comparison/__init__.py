"""Several runs compared: directions within one base, and how well their transition steps agree."""
