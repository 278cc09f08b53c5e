"""Markdown tables of shares with their binomial intervals, for all benchmarks."""

import numpy as np


def share(hits):
    """A share in per cent with its 95 % Wilson interval; '–' of nothing."""
    n, z = len(hits), 1.96
    if n == 0:
        return "–"
    rate = float(np.mean(hits))
    centre, half = rate + z * z / (2 * n), z * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    low, high = ((centre + sign * half) / (1 + z * z / n) * 100 for sign in (-1, 1))
    return f"{rate * 100:.1f} [{max(low, 0):.1f}, {min(high, 100):.1f}]"


def print_row(*cells, head=False):
    """A row of a markdown table, with the rule under it where it is the head."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    if head:
        print("|" + "---|" * len(cells), flush=True)
