"""English organisms: narrow advice, reckless or careful, and pairs of answers that show its effect elsewhere."""
