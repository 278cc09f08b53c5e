"""What is trained, on what: base models, datasets, and the built-in organism with its language, judge and configs."""
