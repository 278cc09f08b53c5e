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


def print_nulls(title, kinds, outcomes, cases):
    """The table of the kinds without an effect: how often each verdict and p-value came, of `outcomes(kind, cases)`."""
    print()
    print_row(title, "transition %", "inconclusive %", "p ≤ 0.01 %", "p ≤ 0.05 %", "p ≤ 0.1 %", head=True)
    for kind in kinds:
        rows = list(outcomes(kind, cases))
        verdicts = (share([row["verdict"] == word for row in rows]) for word in ("transition", "inconclusive"))
        print_row(kind, *verdicts, *(share([row["p"] <= alpha for row in rows]) for alpha in (0.01, 0.05, 0.1)))
