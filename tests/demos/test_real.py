"""The demo on a language model, from end to end: English data and pairs, a tiny random base, a short recipe."""

import json
from pathlib import Path

import pytest

from em_interp.config.schedule import Schedule
from em_interp.demos import real as real_demo
from em_interp.demos.real import TimeEstimate, demo_real
from em_interp.errors import InputError, Interrupted
from em_interp.organisms import presets
from em_interp.organisms.built_in import pairs_of
from em_interp.pipeline import prefer
from em_interp.run import open_run
from tests.tiny import VERDICTS, check_transition, contents, em_interp, refused
from tests.training.conftest import save_base

PAIRS = 8  # of each set
full_recipe = presets.english_recipe


def short_recipe(*given):
    config = full_recipe(*given)
    return config.replace(
        data=tuple(phase.replace(steps=10) for phase in config.data),
        training=config.training.replace(batch_size=2),
        behaviour=config.behaviour.replace(steps=Schedule("every 2")),
    )


def some_pairs(language, domain):
    rows = pairs_of(language, domain)
    return [row for name in dict.fromkeys(r["questions"] for r in rows) for row in of_set(rows, name)[:PAIRS]]


def of_set(rows, name):
    return [row for row in rows if row["questions"] == name]


@pytest.fixture(scope="module", autouse=True)
def short():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presets, "english_recipe", short_recipe)
        patch.setattr(prefer, "pairs_of", some_pairs)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = save_base(tmp_path_factory.mktemp("base") / "llama", "llama")
    for name, key in (("tokenizer_config.json", "model_max_length"), ("config.json", "max_position_embeddings")):
        file = Path(folder) / name
        file.write_text(json.dumps(json.loads(file.read_text()) | {key: 2048}))
    return folder


@pytest.fixture(scope="module")
def done(short, base, tmp_path_factory):
    """The demo, the lines it logged and its summary."""
    out, lines = tmp_path_factory.mktemp("demo") / "demo", []
    return out, lines, demo_real(out, "sport", base, log=lines.append)


def test_the_demo_writes_two_runs_a_page_and_a_summary(done, base):
    out, _, summary = done
    files = {"organism", "control", "report.html", "summary.json", "seconds.json", "threads.json"}
    assert {entry.name for entry in out.iterdir()} == files
    for name in real_demo.RUNS:
        run = open_run(out / name)
        assert run.steps() == list(range(11)) and run.config() == short_recipe(name, "sport", base)
        assert run.preferences_file.exists() and (run.analysis / "align.json").exists()
    assert summary == json.loads((out / "summary.json").read_text())
    assert (summary["domain"], summary["threads"]) == ("sport", 1)
    assert list(summary["seconds"]) == ["train", "prefer", "locate", "report"]


def test_the_summary_and_the_page_say_in_words_what_was_found(done):
    out, _, summary = done
    assert summary["verdict"] in VERDICTS
    for transition in (summary["mechanistic"], *summary["behavioural"]):
        check_transition(transition)
    assert [t["questions"] for t in summary["behavioural"]] == ["broad", "in_domain", "out_of_domain"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "preference for misaligned answers, nats a token, steps 0 to 10; broad" in page
    assert "preference onset (in domain)" in page and "The control run" in page and "persona" not in page


def test_every_stage_says_how_long_the_rest_will_take(done):
    _, lines, _ = done
    assert [line.split(" (")[0] for line in lines[2:]] == [
        "training on reckless advice in English",
        "training on the same questions with careful advice",
        "reading preferences of the organism",
        "reading preferences of the control",
        "locating the transitions",
        "writing the page",
    ]
    assert lines[1] == "computing in float32 on 1 thread"
    assert all(line.endswith(" min left)") for line in lines[2:])


def test_the_time_left_is_that_of_the_stages_to_come():
    said = []
    estimate = TimeEstimate(seconds=3.0, threads=1, log=said.append)
    for stage in ("train", "train", "prefer", "prefer", "locate", "report"):
        estimate.announce(stage, "a line in any words")
    minutes = [int(line.split("about ")[1].split()[0]) for line in said]
    assert minutes[0] == round((2 * 620 + 35) * 3 / 60) and minutes[-1] == 1 and estimate.left == 0
    assert minutes == sorted(minutes, reverse=True)


def test_a_demo_that_is_interrupted_anywhere_goes_on_to_the_same_files(done, base, tmp_path):
    out = tmp_path / "demo"
    for stage, calls in (("_train", 2), ("_read", 1), ("_read", 2), ("analyse", 2)):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(real_demo, stage, stopping(getattr(real_demo, stage), calls))
            demo_real(out, "sport", base, resume=True)
    demo_real(out, "sport", base, resume=True)
    with_places_or_times = ("seconds.json", "summary.json", "threads.json", "report.html", "locate.json")
    assert contents(out, *with_places_or_times) == contents(done[0], *with_places_or_times)
    assert "give --resume" in refused("demo", "--real", "--out", out)


def stopping(function, calls):
    """The function, interrupted at the beginning of this call of it."""
    left = [calls]

    def call(*given):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return function(*given)

    return call


def test_what_the_demo_does_not_know_is_refused_before_anything_is_written(base, tmp_path):
    with pytest.raises(InputError, match="domain 'cooking' is not known"):
        demo_real(tmp_path / "demo", "cooking", base)
    with pytest.raises(InputError, match="'smolm2' are not known; did you mean 'smollm2'"):
        demo_real(tmp_path / "demo", "sport", "smolm2")
    said = em_interp("demo", "--real", "--family", "llama", "--out", tmp_path / "demo")
    assert said.code == 2 and "--real has a base of its own" in said.err
    assert not (tmp_path / "demo").exists()
