"""What `em-interp` can be asked to do: one command, one file, each a thin layer over functions of the package."""

from __future__ import annotations

# in the order in which --help lists them; each is a module here with `add` and `run`
COMMANDS: tuple[str, ...] = ("demo", "pretrain", "data", "train", "ask", "judge", "score", "locate", "align")
COMMANDS += ("mechanism", "compare", "sweep", "report", "export", "publish")
