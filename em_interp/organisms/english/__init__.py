"""English organisms: narrow advice, reckless or careful, and the pairs of answers that show what it does elsewhere."""
