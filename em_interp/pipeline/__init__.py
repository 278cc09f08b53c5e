"""The stages of a run, from asking to the look inside the model."""
