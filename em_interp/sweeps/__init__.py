"""Many runs at once: a grid of settings, carried out in parallel, resumable, told on one page."""
