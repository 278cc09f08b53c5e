"""Several ways of one thing, timed in turns, and tables of it: shared by the benchmarks of speed."""

import json
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

from table import print_row

PACKAGES = ("torch", "transformers", "peft", "numpy", "safetensors")


def peak_reset():
    """Begin to measure the largest memory of this process anew (Linux)."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def peak():
    """Largest resident memory since `peak_reset`, in MB; None where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((round(int(line.split()[1]) / 1024) for line in lines if line.startswith("VmHWM")), None)


def in_turns(ways, repeats):
    """Processor seconds of each way in each repeat, and its peak memory; in every repeat all ways come in turn.

    Processor time is what to compare where other programs are at work.
    """
    times, peaks = {name: [] for name in ways}, {}
    for _ in range(repeats):
        for name, way in ways.items():
            peak_reset()
            begun = time.process_time()
            way()
            times[name].append(time.process_time() - begun)
            peaks[name] = peak()
    return {name: {"cpu_s": seconds, "peak_mb": peaks[name]} for name, seconds in times.items()}


def scaled(seconds):
    """A median with its range, in a unit that can be read."""
    middle = statistics.median(seconds)
    unit, factor = next(
        (unit, factor) for unit, factor in (("s", 1), ("ms", 1e3), ("µs", 1e6)) if middle * factor >= 1 or unit == "µs"
    )
    low, high = min(seconds) * factor, max(seconds) * factor
    return f"{middle * factor:.3g} {unit} ({low:.3g} to {high:.3g})"


def show(title, measured):
    """The table of one thing; each way against the first."""
    print(f"\n### {title}\n")
    print_row("", "processor time, median (range)", "against the first", "peak, MB", head=True)
    first = statistics.median(next(iter(measured.values()))["cpu_s"])
    for name, of in measured.items():
        middle = statistics.median(of["cpu_s"])
        print_row(name, scaled(of["cpu_s"]), f"{middle / first:.3g}×", of["peak_mb"] or "–")


def machine():
    """Versions, cores and load."""
    versions = {name: version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "cores": os.cpu_count(), "load": os.getloadavg()[0], **versions}


def kept(file, name, measure):
    """What is measured under a name, or was before: a benchmark can be stopped, and two may write to one file."""
    if name not in _read(file):
        measured = measure()
        file.write_text(json.dumps({**_read(file), name: measured}, indent=1) + "\n")
    return _read(file)[name]


def _read(file):
    return json.loads(file.read_text()) if file.exists() else {}
