"""What adapters change on shared texts, with the layers below them computed once."""

import dataclasses

import numpy as np
import pytest

from em_interp.comparison.cross_base import activation_diff as module
from em_interp.comparison.cross_base.texts import built_in_texts
from em_interp.mechanism import open_model
from tests.comparison.cross_base.two_bases import SITE, path_on, small_base

TEXTS = built_in_texts(24)
DRAWS = 2


def on_layer(path, site):
    """The same adapter at another site."""
    return dataclasses.replace(path, **{part: {site: getattr(path, part)[SITE]} for part in ("A", "B", "scale")})


@pytest.mark.parametrize("family", ["qwen2", "gemma3"])
def test_keeping_the_layers_below_the_adapter_changes_no_number(family, monkeypatch):
    base = small_base(family)
    model = open_model(on_layer(path_on(base), "layers.1.mlp.down_proj"), base)
    passes = []
    model.base.model.model.layers[0].mlp.register_forward_hook(lambda *_: passes.append(1))

    def measured():
        passes.clear()
        diff = module.activation_diff(model, TEXTS, np.array([0, 1]), module.own_and_random(model, DRAWS))
        return diff, len(passes)

    kept, with_cache = measured()
    monkeypatch.setattr(module, "frozen_layer_cache", lambda *_: None)
    slow, without = measured()
    assert with_cache - len(TEXTS) == without - DRAWS - 1  # a pass for each text alone instead of one for each adapter
    for name in ("base", "mean", "grams", "write_logits", "final_logits"):
        np.testing.assert_allclose(getattr(kept, name), getattr(slow, name), atol=1e-5, rtol=1e-4, err_msg=name)
    assert (kept.mean[:, 0] == 0).all() and (slow.mean[:, 0] == 0).all()
    assert np.abs(kept.mean[:, 1]).max() > 0.1
