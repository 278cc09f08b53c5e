"""What the model says along the run: questions, answers, judges, scores, curves."""
