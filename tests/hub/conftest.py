"""What the tests of the Hub share: a Hub on this machine, with a fresh cache and no waits."""

import time
from types import SimpleNamespace

import pytest

import em_interp.hub.download as access
from tests.hub.server import serve
from tests.hub.state import TOKEN


@pytest.fixture
def waits(monkeypatch):
    """The seconds that were to be waited between tries; they are not waited."""
    from huggingface_hub import file_download
    from huggingface_hub.utils import _http

    waited = []
    clock = SimpleNamespace(**vars(time))
    clock.sleep = waited.append
    for module in (access, file_download, _http):
        monkeypatch.setattr(module, "time", clock)
    return waited


@pytest.fixture
def hub(tmp_path, monkeypatch, waits):
    """A Hub, a fresh cache, no token, and no waits; what huggingface_hub read at import is set anew."""
    from huggingface_hub import close_session, constants

    for name, value in (("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_TELEMETRY", True), ("HF_HUB_DISABLE_XET", True)):
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
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
