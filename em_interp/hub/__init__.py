"""The Hub: a repository of checkpoints as a folder on this machine, and a run as a repository."""

from em_interp.hub.fetch import fetch
from em_interp.hub.names import is_hub_id
from em_interp.hub.publish import publish

__all__ = ["fetch", "is_hub_id", "publish"]
