"""Full fine-tuning: every weight of the language model is trained, and the path is the change of its matrices.

A checkpoint holds, of each chosen matrix, the projection (`em_interp.training.projection`) of its change since before
training: 4 · min(dimension, entries) bytes a matrix. All 336 linear matrices of a 14B model with 48 layers are 1.4 MB a
step at dimension 1024, where the weights in bfloat16 are 28 GB. Those are kept beside it only at the steps of a
schedule, as transformers saves them: `checkpoint-<step>` is then a model that it loads, and these are the steps that
can be asked. The state that a resume starts from holds the weights and both of Adam's moments, twice: 24 bytes a
parameter in float32.

In bfloat16 an update below 1/256 of a weight is rounded away; `dtype: auto` therefore means weights in float32 here, on
a GPU with the computing in bfloat16 (`mixed`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from em_interp.config import FullConfig
from em_interp.organisms.bases import Base
from em_interp.runs import CHECKPOINT, to_json, write_beside
from em_interp.training.adapter import choose_sites, site_name
from em_interp.training.packing import Packer
from em_interp.training.projection import GROUPS, Projection, relative_error
from em_interp.trajectory.weight_change import CONFIG, WEIGHTS


class FullLearner:
    """A model whose language model is trained whole; a vision tower stays as it is."""

    def __init__(self, base: Base, config: FullConfig, kept: frozenset[int], copied: bool = False) -> None:
        """Follow the matrices of `config`, and keep all weights at the steps `kept`.

        `copied` makes a second model, frozen, for `reference`. Raises InputError for a matrix that is not there.
        """
        self.model, self.tokenizer, self.kept = base.model, base.tokenizer, kept
        self.before = deepcopy(base.model).requires_grad_(False) if copied else None
        self.weights = _language_weights(base.model)
        self.matrices = {site_name(site): base.model.get_submodule(site) for site in choose_sites(base.model, config)}
        shapes = {site: tuple(module.weight.shape) for site, module in self.matrices.items()}
        self.projections = {site: Projection(site, shape, config.dimension) for site, shape in shapes.items()}
        self.start = {site: self.projections[site](module.weight) for site, module in self.matrices.items()}
        self.packer = Packer({"format": "pt"})
        self.said = to_json(
            {
                "base_model_name_or_path": base.name,
                "dimension": config.dimension,
                "groups": GROUPS,
                "relative_error": relative_error(config.dimension),
                "shapes": shapes,
            }
        )

    def save(self, folder: Path) -> None:
        """Write the projected change to `folder`, with the full weights where the schedule keeps them."""
        number = CHECKPOINT.search(folder.name)
        with write_beside(folder) as part:
            part.mkdir()
            if number and int(number[1]) in self.kept:
                self.model.save_pretrained(part)
                self.tokenizer.save_pretrained(part)
            (part / WEIGHTS).write_bytes(self.packer.pack(self.change()))
            (part / CONFIG).write_text(self.said, encoding="utf-8")

    def change(self) -> dict[str, Any]:
        """The projected change of each matrix since before training, in float32."""
        now = {site: self.projections[site](module.weight) for site, module in self.matrices.items()}
        return {
            site: (now[site] - start.to(now[site].device)).float().cpu().numpy() for site, start in self.start.items()
        }

    @contextmanager
    def reference(self) -> Iterator[Any]:
        """The base: a second, frozen copy."""
        assert self.before is not None, "made without `copied`"
        yield self.before.to(self.model.device)


def _language_weights(model: Any) -> dict[str, Any]:
    """The parameters of the decoder and its head, made trainable; all others are frozen."""
    model.requires_grad_(False)
    for part in (model.get_decoder(), model.get_output_embeddings()):
        part.requires_grad_(True)
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
