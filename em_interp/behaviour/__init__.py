"""What the model says along the run: questions, generated answers, judges, scores, curves."""
