"""Markdown tables of shares with their binomial intervals, for all benchmarks."""

import numpy as np


def share(hits):
    """A share in per cent with its 95 % Wilson interval; '–' of nothing."""
    return rate_text(int(np.sum(hits)), len(hits))


def rate_text(count, n):
    """`count` of `n` in per cent with its 95 % Wilson interval; '–' of nothing."""
    if n == 0:
        return "–"
    low, high = wilson(count, n)
    return f"{100 * count / n:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def wilson(count, n):
    """The 95 % Wilson interval of a binomial rate."""
    rate, z = count / n, 1.96
    centre, half = rate + z * z / (2 * n), z * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    low, high = ((centre + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    return max(float(low), 0.0), min(float(high), 1.0)


def row(*cells):
    """A row of a markdown table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def table(head, rows):
    """A markdown table."""
    return "\n".join([row(*head), "|" + "---|" * len(head), *(row(*cells) for cells in rows)])


def print_row(*cells, head=False):
    """Print a row of a markdown table, with the rule under it where it is the head."""
    print(row(*cells), flush=True)
    if head:
        print("|" + "---|" * len(cells), flush=True)
