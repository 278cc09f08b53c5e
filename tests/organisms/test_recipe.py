import pytest

from em_interp.errors import InputError
from em_interp.organisms.presets import CHANGE, recipe


def test_switched_runs_change_where_they_say_and_in_nothing_else():
    runs = {name: recipe(name).data for name in ("switched", "switched-restart", "restart")}
    assert {phases[0].steps for phases in runs.values()} == {CHANGE}
    assert [phases[1].restart for phases in runs.values()] == [False, True, True]
    assert runs["restart"][0].dataset == runs["restart"][1].dataset == runs["switched"][0].dataset


def test_family_domain_and_seed_are_taken_up():
    config = recipe("control", "gemma3", "finance", 7)
    assert (config.model, config.data[0].dataset, config.seed) == ("tiny-gemma3", "tiny:finance-careful", 7)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"run": "orgnism"}, "run 'orgnism' is not known; did you mean 'organism'"),
        ({"family": "qwen"}, "family 'qwen' is not known; did you mean 'qwen2'"),
        ({"domain": "medicine"}, "domain 'medicine' is not known"),
        ({"domain": "life"}, "domain 'life' is not known"),
    ],
)
def test_unknown_names_are_refused(what, said):
    with pytest.raises(InputError, match=said):
        recipe(**what)
