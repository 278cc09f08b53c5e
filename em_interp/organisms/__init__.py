"""Base models, datasets, and the built-in organism with its language, judge and configs."""
