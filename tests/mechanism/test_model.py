"""Opening a model: what it is opened with, and what is refused and in what words."""

import copy
import sys
from dataclasses import dataclass, replace
from types import ModuleType

import pytest

from em_interp.errors import InputError
from em_interp.mechanism import open_model
from tests.behaviour.conftest import save_run

from .conftest import ANSWERS, QUESTIONS, adapters, base_of, opened


def test_a_run_is_opened_with_the_base_that_its_manifest_names(tmp_path):
    identity = base_of("tiny-qwen2").identity
    run = save_run(tmp_path / "run", adapters("tiny-qwen2", rank=1), identity)
    manifest = run.manifest_file.read_text().replace('"name": "tiny"', '"name": "tiny-qwen2"')
    run.manifest_file.write_text(manifest)
    with open_model(run.path).at(5) as adapted:
        assert adapted.run(adapted.model.prompts(QUESTIONS)).logits.isfinite().all()


def test_adapters_of_another_base_are_refused(tmp_path):
    run = save_run(tmp_path / "run", adapters("tiny-qwen2", rank=1), "tiny-qwen2@other")
    with pytest.raises(InputError, match=r"trained on tiny-qwen2@other; the base given is tiny-qwen2@"):
        open_model(run, base_of("tiny-qwen2"))
    with pytest.raises(InputError, match="trained on tiny-qwen2; the base given is tiny-llama"):
        open_model(adapters("tiny-qwen2"), base_of("tiny-llama"))


def test_an_unknown_engine_names_the_nearest():
    with pytest.raises(InputError, match="engine 'nnsigth' is not known; did you mean 'nnsight'"):
        open_model(adapters("tiny-qwen2"), base_of("tiny-qwen2"), "nnsigth")


@dataclass
class Without:
    """An importer that does not find a package."""

    package: str

    def find_spec(self, name, path=None, target=None):
        if name == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize("engine", ["transformer_lens", "nnsight"])
def test_an_engine_that_is_not_installed_says_what_to_install_and_a_broken_one_what_is_broken(engine, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == engine]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Without(engine), *sys.meta_path])
    said = rf"the engine {engine} needs {engine}, which is not installed: pip install 'em-interp\[mechanism\]'"
    with pytest.raises(InputError, match=said):
        open_model(adapters("tiny-qwen2"), base_of("tiny-qwen2"), engine)
    monkeypatch.setitem(sys.modules, engine, ModuleType(engine))  # another version: its parts are not there
    with pytest.raises(ModuleNotFoundError, match=rf"{engine}\."):
        open_model(adapters("tiny-qwen2"), base_of("tiny-qwen2"), engine)


@pytest.mark.parametrize(
    "name, hint",
    [("resid_pots.1", "resid_post.1"), ("resid_post.9", "resid_post."), ("scalar.layers.1.mlp.up_proj", "scalar.")],
)
def test_an_unknown_activation_names_the_nearest_and_what_there_is(model, name, hint):
    with model.at(5) as adapted, pytest.raises(InputError, match=rf"{name}'; did you mean '{hint}.*layers 0 to 3"):
        adapted.run(model.prompts(QUESTIONS), [name])


def test_an_activation_that_was_not_kept_is_named(model):
    with model.at(5) as adapted, pytest.raises(InputError, match=r"'mlp_out.0' was not requested; kept were resid"):
        adapted.run(model.prompts(QUESTIONS), ["resid_post.0"])["mlp_out.0"]


def test_a_tokenizer_without_a_chat_template_is_refused_with_what_is_missing():
    base = base_of("tiny-qwen2")
    bare = copy.deepcopy(base.tokenizer)
    bare.chat_template = None
    model = open_model(adapters("tiny-qwen2"), replace(base, tokenizer=bare))
    for read in (lambda: model.prompts(QUESTIONS), lambda: model.chats(QUESTIONS, ANSWERS)):
        with pytest.raises(InputError, match=r"no chat template.*instruct model was expected"):
            read()


def test_a_second_step_within_the_block_of_the_first_is_refused(model):
    with model.at(5), pytest.raises(InputError, match="has the adapter of step 5 already"), model.at(10):
        pass
    with model.at(10) as adapted:  # and the block of the first is over
        assert adapted.run(model.prompts(QUESTIONS)).logits.isfinite().all()


def test_a_step_that_was_not_saved_is_refused_with_the_nearest(model):
    with pytest.raises(InputError, match="step 7 was not saved; the nearest saved steps are 0, 5, 10"), model.at(7):
        pass


def test_a_site_that_is_no_linear_module_or_of_another_size_is_refused():
    path = adapters("tiny-qwen2", ["mlp.down_proj"], [1])
    (site,) = path.sites
    with pytest.raises(InputError, match=r"'layers.1.mlp' is a Qwen2MLP; expected a linear module"):
        open_model(
            replace(
                path, A={"layers.1.mlp": path.A[site]}, B={"layers.1.mlp": path.B[site]}, scale={"layers.1.mlp": 1}
            ),
            base_of("tiny-qwen2"),
        )
    for engine in ("hooks", "transformer_lens", "nnsight"):
        with pytest.raises(InputError, match="is 383 → 128, the model's module 384 → 128"):
            open_model(replace(path, A={site: path.A[site][:, :, :-1]}), base_of("tiny-qwen2"), engine)


def test_projections_of_a_full_fine_tune_cannot_be_opened():
    with pytest.raises(
        InputError, match="cannot be put back into the base; expected LoRA adapters or steering vectors"
    ):
        open_model(replace(adapters("tiny-qwen2"), kind="full"), base_of("tiny-qwen2"))


def test_an_opened_model_says_what_it_is():
    assert "4 layers, through hooks, with AdapterTrajectory(" in repr(opened("tiny-qwen2").models["hooks"])
