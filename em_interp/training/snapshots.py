"""Saving the adapter at chosen steps, cheaply enough to do it at every one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from em_interp.errors import InputError
from em_interp.runs import write_beside
from em_interp.schedule import Schedule
from em_interp.training.adapter import adapter_config_text, adapter_weights
from em_interp.training.packing import Packer


class Writer(Protocol):
    """Whatever can write the checkpoint of the moment."""

    def save(self, folder: Path) -> None:
        """Write it to `folder`, whole or not at all."""


class Snapshots(TrainerCallback):
    """Saves `checkpoint-<step>` folders, each a whole PEFT adapter, at the steps of a schedule.

    For any Trainer whose model is a PeftModel with one LoRA adapter. Step 0 and the last are always saved. A folder
    appears only when complete. PEFT's own `save_pretrained` takes milliseconds and may ask the Hub; this writes the
    two vectors and a config text prepared once. Of several processes the first one saves.
    """

    def __init__(self, folder: Path, schedule: Schedule, offset: int = 0, writer: Writer | None = None) -> None:
        """`folder` holds the checkpoint folders; `offset` is the number of steps done before this Trainer began.

        `writer` saves something else than the adapter of a PeftModel.
        """
        self.folder, self.schedule, self.offset = Path(folder), schedule, offset
        self.steps: frozenset[int] = frozenset()
        self.writer = writer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Prepare, and save step 0."""
        self.steps = frozenset(self.schedule.steps(self.offset + state.max_steps))
        self.writer = self.writer or AdapterWriter(kwargs["model"])
        self.on_step_end(args, state, control, **kwargs)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save this step if the schedule names it."""
        step = self.offset + state.global_step
        if self.writer and step in self.steps and state.is_world_process_zero:
            self.writer.save(self.folder / f"checkpoint-{step}")


class AdapterWriter:
    """Writes the LoRA adapter of a PeftModel, as it is at the moment, to folders that PEFT can load.

    Weights are saved in float32. The folders of one writer share their adapter_config.json through hard links where
    the file system has them, because to create a file takes far longer.
    """

    def __init__(self, model: Any) -> None:
        self.weights, self.config_text = adapter_weights(model), adapter_config_text(model)
        if not self.weights or any(hasattr(weight, "full_tensor") for weight in self.weights.values()):
            raise InputError(
                "the adapter's weights are not whole in this process, so they cannot be saved; the usual cause is FSDP "
                "(leave them out with ignored_params, as em_interp.training.sharding does)"
            )
        self.packer = Packer({"format": "pt"})
        self.config_file: Path | None = None

    def save(self, folder: Path) -> None:
        """Write the adapter to `folder`, whole or not at all; a folder that is there is replaced."""
        arrays = {name: weight.detach().float().cpu().numpy() for name, weight in self.weights.items()}
        with write_beside(folder) as part:
            part.mkdir()
            (part / "adapter_model.safetensors").write_bytes(self.packer.pack(arrays))
            self._put_config(part / "adapter_config.json")
        self.config_file = folder / "adapter_config.json"

    def _put_config(self, path: Path) -> None:
        try:
            if self.config_file:
                path.hardlink_to(self.config_file)
                return
        except OSError:  # no hard links here, or too many of them
            pass
        path.write_text(self.config_text, encoding="utf-8")
