"""Adapters as a vLLM server loads them: written as LoRA modules, loaded when needed, unloaded to make room."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Condition, Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from em_interp.behaviour.sampling.checkpoint_models import adapter_digest
from em_interp.behaviour.sampling.generate import full_module_name
from em_interp.behaviour.vllm.server import VLLMServer
from em_interp.errors import InputError
from em_interp.layouts import CONFIG_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    from em_interp.trajectory.trajectory import AdapterTrajectory

AdapterKey = tuple[int, float]  # a saved step, and the multiplier of its adapter


@dataclass(frozen=True)
class AdapterFiles:
    """The adapters of a trajectory as folders that vLLM loads.

    B is multiplied by the adapter's scaling (rsLoRA's included) and by the multiplier, and the config says alpha = r,
    so that the server multiplies by 1.

    Attributes:
        trajectory: A path of LoRA adapters.
        model: The base model, for the full names of the adapted modules.
        base: What the base is called.
        folder: In which they are written; the servers must see it under the same path.
    """

    trajectory: AdapterTrajectory
    model: Any
    base: str
    folder: Path
    digests: dict[int, str] = field(default_factory=dict)  # of the weights, by step

    def __post_init__(self) -> None:
        if self.trajectory.kind != "lora":
            raise InputError(
                f"vLLM serves LoRA adapters; {self.trajectory.source or 'the run'} was trained with adapter.kind "
                f"{self.trajectory.kind}: set behaviour.engine to local"
            )

    @property
    def prefix(self) -> str:
        """The prefix of this run's adapter names on a server."""
        return f"em-{hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()[:10]}-"

    def name(self, key: AdapterKey) -> str:
        """What a server calls an adapter: never the same for other weights, whose cached prompts it would reuse."""
        step, scale = key
        if step not in self.digests:
            self.digests[step] = adapter_digest(self.trajectory, [step])
        return f"{self.prefix}{step}-{scale:g}-{self.digests[step]}"

    def write(self, key: AdapterKey, place: Path) -> Path:
        """The folder of an adapter in `place`, written anew."""
        from safetensors.numpy import save_file

        (step, scale), folder = key, place / self.name(key)
        adapter, tensors = self.trajectory.at(step), {}
        rank = max(A.shape[0] for A, _ in adapter.values())
        for site, (A, B) in adapter.items():
            module, lacking = f"base_model.model.{full_module_name(self.model, site)}", rank - A.shape[0]
            scaled = (B * np.float32(self.trajectory.scale[site] * scale)).astype(np.float32)
            tensors[f"{module}.lora_A.weight"] = np.pad(A.astype(np.float32), ((0, lacking), (0, 0)))
            tensors[f"{module}.lora_B.weight"] = np.pad(scaled, ((0, 0), (0, lacking)))
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / WEIGHTS_FILE)
        (folder / CONFIG_FILE).write_text(json.dumps(self._config(rank)))
        return folder

    def _config(self, rank: int) -> dict[str, Any]:
        modules = [full_module_name(self.model, site) for site in self.trajectory.sites]
        lora = {"r": rank, "lora_alpha": rank, "use_rslora": False, "lora_dropout": 0.0, "bias": "none"}
        base = {"base_model_name_or_path": self.base, "task_type": "CAUSAL_LM"}
        return {"peft_type": "LORA", **base, **lora, "target_modules": modules}


@dataclass
class _Loaded:
    """An adapter that is loaded, or about to be."""

    users: int = 0
    ready: bool = False
    lock: Lock = field(default_factory=Lock)


class LoadedAdapters:
    """The adapters that one server has loaded, at most `max_adapters` at a time; safe to use from many threads.

    Args:
        server: The server.
        files: The adapters.
        place: Where the folders of those that are loaded are kept.
        max_adapters: How many are loaded at most.
        check: Called with the server, an adapter's name and its key once it is loaded.
    """

    def __init__(
        self,
        server: VLLMServer,
        files: AdapterFiles,
        place: Path,
        max_adapters: int,
        check: Callable[[VLLMServer, str, AdapterKey], None],
    ) -> None:
        self.server, self.files, self.place, self.max_adapters, self.check = server, files, place, max_adapters, check
        self.loaded: OrderedDict[AdapterKey, _Loaded] = OrderedDict()  # the one used longest ago first
        self.changed = Condition()

    @contextmanager
    def using(self, key: AdapterKey) -> Iterator[str]:
        """A block in which an adapter is loaded; yields its name."""
        adapter, name = self._claim(key), self.files.name(key)
        try:
            with adapter.lock:
                if not adapter.ready:
                    self.server.load(name, self.files.write(key, self.place))
                    self.check(self.server, name, key)
                    adapter.ready = True
            yield name
        finally:
            with self.changed:
                adapter.users -= 1
                self.changed.notify_all()

    def _claim(self, key: AdapterKey) -> _Loaded:
        with self.changed:
            while key not in self.loaded and len(self.loaded) >= self.max_adapters:
                idle = next((other for other, adapter in self.loaded.items() if adapter.users == 0), None)
                if idle is None:
                    self.changed.wait()
                else:
                    self._unload(idle)
            adapter = self.loaded.setdefault(key, _Loaded())
            adapter.users += 1
            self.loaded.move_to_end(key)
            return adapter

    def _unload(self, key: AdapterKey) -> None:
        del self.loaded[key]
        self.server.unload(self.files.name(key))
        shutil.rmtree(self.place / self.files.name(key), ignore_errors=True)

    def unload_all(self) -> None:
        """Unload what is loaded."""
        for key in list(self.loaded):
            self._unload(key)

    def unload_leftovers(self, names: tuple[str, ...]) -> None:
        """Unload this run's adapters among those that the server has: an interrupted process has left them."""
        for name in names:
            if name.startswith(self.files.prefix):
                self.server.unload(name)
