"""The demos: on the built-in base, and on a real language model."""
