"""The settings that asking and judging take for one call: those that matter, and no others in silence."""

import pytest

import em_interp as em
from em_interp.errors import InputError
from tests.tiny import contents, copy, json_of, refused


@pytest.mark.parametrize(
    ("command", "setting", "said"),
    [
        ("ask", "behaviour.judge=tiny", "the setting behaviour.judge plays no part when answers are sampled"),
        (
            "ask",
            "training.learning_rate=1",
            "the setting training.learning_rate plays no part when answers are sampled",
        ),
        ("ask", "behaviour.sampels=4", "did you mean 'samples'"),
        ("judge", "behaviour.samples=4", "the setting behaviour.samples plays no part when answers are judged"),
        ("judge", "seed=4", "the setting seed plays no part when answers are judged"),
        ("judge", "behaviour.jugde=tiny", "did you mean 'judge'"),
    ],
)
def test_a_setting_on_which_nothing_depends_is_refused_and_nothing_is_written(command, setting, said, tiny, tmp_path):
    run = copy(tiny.run, tmp_path / "run")
    before = contents(run)
    assert said in refused(command, run, "--set", setting, "--overwrite")
    assert contents(run) == before


def test_settings_on_which_answers_and_scores_depend_are_taken(tiny, tmp_path):
    run = copy(tiny.run, tmp_path / "run")
    json_of(
        "ask", run, "--overwrite", "--set", "behaviour.samples=1", "--set", "behaviour.steps=0, 24", "--set", "seed=5"
    )
    json_of("judge", run, "--set", "behaviour.judge=tiny")
    assert sorted(em.behaviour_curve(run).answers["step"].unique()) == [0, 24]
    with pytest.raises(InputError, match="the setting data plays no part when answers are sampled"):
        em.ask(run, overwrite=True, overrides=["data=[]", "data=[{dataset: 'tiny:sport', steps: 3}]"])
