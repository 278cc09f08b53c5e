"""Figures of what is inside the model; each result of `em_interp.mechanism` draws its own with `.plot()`."""
