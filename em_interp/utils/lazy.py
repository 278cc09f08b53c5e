"""Names of a package that are loaded on first use, so that importing it costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy(package: str, modules: dict[str, str]) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """`__all__`, `__getattr__` and `__dir__` of a package.

    Args:
        package: its name.
        modules: the names by module, separated by spaces; `name=there` where the module calls it otherwise. The names
            by "" are modules of the package themselves.
    """
    words = ((module, word.partition("=")) for module, names in modules.items() for word in names.split())
    places = {name: (module, there or name) for module, (name, _, there) in words}

    def load(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, there = places[name]
        return getattr(import_module(f"{package}.{module}"), there) if module else import_module(f"{package}.{name}")

    return list(places), load, lambda: sorted(places)
