"""What a run's checkpoints answer through: their own base alone, and steps and scales that there are."""

import pytest

from em_interp.behaviour.sampling.ask import ask
from em_interp.errors import InputError
from tests.behaviour.conftest import SITES, Base, make_trajectory, save_run
from tests.behaviour.sampling.test_ask import QUESTIONS, SETTINGS


def test_answers_of_adapters_that_were_trained_again_are_not_continued(run, base, tmp_path):
    ask(run, base, QUESTIONS, **SETTINGS)
    again = save_run(tmp_path / "again", make_trajectory(SITES, seed=1))
    run.answers_file.parent.rename(again.answers_file.parent)
    with pytest.raises(InputError, match="begun with other adapters"):
        ask(again, base, QUESTIONS, **SETTINGS, resume=True)


def test_adapters_of_another_base_are_refused(run, base, tmp_path):
    with pytest.raises(InputError, match="trained on tiny@0; the base given is other@1"):
        ask(run, Base(base.model, base.tokenizer, identity="other@1"), QUESTIONS, **SETTINGS)
    assert ask(run, Base(base.model, base.tokenizer, "renamed", "renamed@0"), QUESTIONS, **SETTINGS).exists()
    public = save_run(tmp_path / "public", make_trajectory(SITES), identity=None)
    with pytest.raises(InputError, match="trained on tiny; the base given is other"):
        ask(public, Base(base.model, base.tokenizer, name="other"), QUESTIONS, **SETTINGS)
    ask(public, Base(base.model, base.tokenizer, name="somebody/Tiny", identity="?"), QUESTIONS, **SETTINGS)


def test_a_step_that_was_not_saved_is_refused_before_anything_is_written(run, base):
    with pytest.raises(InputError, match="7"):
        ask(run, base, QUESTIONS, **{**SETTINGS, "steps": [0, 7]})
    assert not run.answers_file.parent.exists()


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1.1e6, 1e308])
def test_an_endless_scale_is_refused_before_anything_is_written(run, base, scale):
    with pytest.raises(InputError, match="a scale must be a number from -1e"):
        ask(run, base, QUESTIONS, **{**SETTINGS, "scales": (1.0, scale)})
    assert not run.answers_file.parent.exists()
