"""What the tests of the Hub share: a Hub on this machine, with a fresh cache and no waits."""

import pytest

from em_interp import hub as access
from tests.hub.server import serve
from tests.hub.state import TOKEN


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub, a fresh cache, no token, and no long waits; what huggingface_hub read at import is set anew."""
    from huggingface_hub import close_session, constants

    for name, value in (("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_TELEMETRY", True), ("HF_HUB_DISABLE_XET", True)):
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(access, "WAIT", 0.01)
    monkeypatch.setattr(access, "MAX_WAIT", 0.02)
    monkeypatch.setenv("EM_INTERP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with serve() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server
        close_session()


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
