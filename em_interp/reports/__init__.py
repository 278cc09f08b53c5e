"""One self-contained HTML page about a run, and its figures as files."""
