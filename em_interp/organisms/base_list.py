"""The known base models, and the facts about one: `em-interp base list` and `em-interp base show`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from em_interp.organisms.bases import (
    BUILT_IN,
    fingerprint,
    load_tokenizer,
    loading,
    local_copy,
    name_of_base,
    revision_of,
)
from em_interp.organisms.fetched_bases import FETCHED, local_folder
from em_interp.organisms.gguf import SOURCE_FILE
from em_interp.utils.checks import checked
from em_interp.utils.stages import read_saved

SOURCE = {"licence?": str, "quantisation?": str}  # what is known of the file that a folder was converted from


@dataclass(frozen=True)
class ListedBase:
    """A base that can be named in a config."""

    name: str
    parameters: float
    local: bool  # on this machine already
    source: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class BaseFacts:
    """The facts about a base. Adapters are checked against `identity` before they are used on it."""

    name: str
    folder: str
    identity: str
    revision: str | None
    architecture: str
    parameters: int
    layers: int
    width: int
    vocabulary: int
    dtype: str  # as stored
    chat_template: bool
    end_token: str | None
    licence: str | None
    quantisation: str | None  # of the GGUF file that the weights come from

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def list_bases() -> list[ListedBase]:
    """The bases that are known by name. Any folder, GGUF file or Hub id of a causal language model is a base too."""
    tiny = [ListedBase(name, 0.95e6, True, "comes with the package") for name in BUILT_IN]
    fetched = [
        ListedBase(name, base.parameters, local_folder(name) is not None, f"Hub {base.hub_id}, or PyPI {base.package}")
        for name, base in FETCHED.items()
    ]
    return [*tiny, *fetched]


@checked
def show_base(name: str) -> BaseFacts:
    """The facts about a base of any kind that is on this machine; nothing is fetched, a GGUF file is converted.

    Raises InputError for a name that `load_base` does not know, and for a base that has not been fetched.
    """
    from transformers import AutoModelForCausalLM

    folder = local_copy(name)
    with loading(name):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=False)
    tokenizer, text = load_tokenizer(str(folder)), model.config.get_text_config()
    origin = read_saved(folder / SOURCE_FILE, SOURCE) if (folder / SOURCE_FILE).is_file() else {}
    called = name_of_base(name)
    return BaseFacts(
        name=called,
        folder=str(folder),
        identity=f"{called}@{fingerprint(model)}",
        revision=revision_of(name),
        architecture=type(model).__name__,
        parameters=model.num_parameters(),
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        vocabulary=text.vocab_size,
        dtype=str(model.dtype).removeprefix("torch."),
        chat_template=bool(tokenizer.chat_template),
        end_token=tokenizer.eos_token,
        licence=origin.get("licence") or (FETCHED[name].licence if name in FETCHED else None),
        quantisation=origin.get("quantisation"),
    )
