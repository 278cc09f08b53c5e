"""Where the answers shift along a run, without a judge."""
