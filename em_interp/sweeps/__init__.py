"""Many runs at once: a grid of settings, trained and analysed in parallel, resumable, compared on one page."""
