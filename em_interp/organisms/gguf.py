"""Base models in GGUF files, as llama.cpp, Ollama and LM Studio use them: dequantised once into plain model folders.

What a GGUF file holds is read by transformers with the `gguf` package: weights, tokenizer and chat template. The
dequantised weights are kept in float32, exactly as computed, in a folder of the user's cache named after the file's
SHA-256; from then on the base is that folder. Nothing in the file is executed.

A quantised file holds another model than the one it was made from: adapters trained on the one do not belong to the
other, and their identities differ.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.util
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from em_interp.errors import InputError, one_line
from em_interp.utils.files import write_beside, write_json

SUFFIX = ".gguf"
MAGIC = b"GGUF"
SOURCE_FILE = "source.json"  # in a converted folder: the file it was made from
HASH_DIGITS = 16  # of the SHA-256, in the folder's name


def is_gguf(name: str) -> bool:
    """Whether a base is named by a GGUF file, which need not exist."""
    return name.lower().endswith(SUFFIX)


def bases_cache() -> Path:
    """The folder of converted bases: in $EM_INTERP_CACHE, or the user's cache folder."""
    import platformdirs

    return Path(os.environ.get("EM_INTERP_CACHE") or platformdirs.user_cache_dir("em_interp")) / "bases"


def converted_folder(sha256: str) -> Path:
    """Where the conversion of the file with this hash is kept, whether or not it exists."""
    return bases_cache() / sha256[:HASH_DIGITS]


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file; computed once for a file that does not change while the process runs.

    Raises InputError where it cannot be read.
    """
    try:
        state = file.stat()
        return _sha256(file.resolve(), state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from None


@lru_cache(maxsize=32)
def _sha256(file: Path, size: int, modified: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def plain_folder(file: Path) -> Path:
    """The GGUF file's model as a folder that transformers loads, converted where that has not been done.

    Needs memory for the weights in float32, and as much room on the disk. Shows a progress bar on a terminal.

    Raises:
        InputError: where the file is missing, is not GGUF or one part of several, where its architecture or
            tokenizer is not supported, weights are missing from it, or the `gguf` package is not installed.
    """
    _check_file(file)
    sha256 = sha256_of(file)
    folder = converted_folder(sha256)
    if not folder.is_dir():
        check_package()
        with _only_one(folder), disk_errors(folder):
            if not folder.is_dir():  # another process may have been first
                _convert(file, sha256, folder)
    return folder


def _check_file(file: Path) -> None:
    if not file.is_file():
        raise InputError(f"base model {str(file)!r} is missing; expected a GGUF file")
    try:
        with file.open("rb") as stream:
            magic = stream.read(len(MAGIC))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from None
    if magic != MAGIC:
        raise InputError(
            f"{file} is not a GGUF file: it begins with {magic!r}, expected {MAGIC!r}; the usual cause is a download "
            "that was cut off, or a Git LFS pointer in place of the file"
        )


def check_package() -> None:
    """Raise InputError where the package that reads GGUF files is not installed."""
    if importlib.util.find_spec("gguf") is None:
        raise InputError("reading a GGUF file needs the package gguf: pip install 'em-interp[gguf]'")


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """One process at a time converts into `folder`; others wait."""
    from filelock import FileLock

    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    with lock:
        yield


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """A full or read-only disk in the block as an InputError that says where else to write."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written: {error.strerror or error}; set EM_INTERP_CACHE to a folder with room"
        ) from error


def _convert(file: Path, sha256: str, folder: Path) -> None:
    from em_interp.organisms.bases import quiet

    model, tokenizer, facts = _read(file)
    with quiet(), write_beside(folder) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        write_json(part / SOURCE_FILE, {"file": file.name, "sha256": sha256, **facts})


def _read(file: Path) -> tuple[Any, Any, dict[str, Any]]:
    """The dequantised model, its tokenizer, and what the file says of itself."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": file.name, "trust_remote_code": False}
    with _errors_in_one_line(file), _bar_on_a_terminal():
        facts = _facts(file)
        model, report = AutoModelForCausalLM.from_pretrained(
            file.parent, dtype=torch.float32, output_loading_info=True, **where
        )
        if missing := sorted(report["missing_keys"]):
            raise InputError(
                f"{file} lacks {len(missing)} of the model's weights, such as {missing[0]}; the usual cause is an "
                "architecture that this version of transformers does not know fully"
            )
        return _plain(model), AutoTokenizer.from_pretrained(file.parent, **where), facts


def _facts(file: Path) -> dict[str, Any]:
    """Name, licence and kind of quantisation, as the file states them.

    Raises InputError for one part of several, and for rotary frequencies that transformers would leave unread.
    """
    from gguf import GGUFReader, LlamaFileType

    reader = GGUFReader(file)
    values = {key: field.contents() for key, field in reader.fields.items() if key.startswith(("general.", "split."))}
    if int(values.get("split.count", 1)) > 1:
        raise InputError(
            f"{file} is one of {values['split.count']} parts; join them first, with llama-gguf-split --merge"
        )
    if scaled := [tensor.name for tensor in reader.tensors if tensor.name.startswith("rope_")]:
        raise InputError(
            f"{file} scales its rotary frequencies ({scaled[0]}, as Llama 3.1 and later do), which transformers does "
            "not read from GGUF: the model would be another; give its folder or Hub id instead"
        )
    kinds = {int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in LlamaFileType}
    return {
        "name": values.get("general.name"),
        "licence": values.get("general.license"),
        "architecture": values.get("general.architecture"),
        "quantisation": kinds.get(int(values.get("general.file_type", -1))),
    }


def _plain(model: Any) -> Any:
    """The same weights in a model that knows of no quantisation: transformers refuses to save one that does."""
    import torch

    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        plain = type(model)(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain


@contextmanager
def _errors_in_one_line(file: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the reader of a damaged file fails in any way: IndexError, KeyError, numpy's own
        reason = one_line(str(error)) or type(error).__name__
        raise InputError(
            f"{file} cannot be read as a model: {reason}; the usual cause is a file that is cut off, or an "
            "architecture that this version of transformers does not read from GGUF"
        ) from error


@contextmanager
def _bar_on_a_terminal() -> Iterator[None]:
    """transformers' progress bar of the dequantised tensors, where progress is shown, without its warnings."""
    from em_interp.organisms.bases import quiet

    hide = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
    with quiet(), hide:
        yield
