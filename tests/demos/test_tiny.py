"""The demo from end to end with a short recipe, and what is promised of the runs that it and `configs/` make."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from em_interp.config.run_config import load_config
from em_interp.demos.tiny import ALIGNED, demo
from em_interp.organisms.presets import RUNS, recipe
from em_interp.run import Run, open_run
from tests.tiny import (
    OFFSET,
    ROOT,
    VERDICTS,
    begin,
    check_transition,
    contents,
    em_interp,
    full_disk,
    interrupted,
    refused,
    short_recipe,
    strict,
    unchanged,
)

STAGES = ["train", "ask", "judge", "locate", "report"]


@pytest.fixture(scope="module", autouse=True)
def short():
    """The demo's runs take a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("em_interp.organisms.presets.recipe", short_recipe)
        yield


@pytest.fixture(scope="module")
def done(short, tmp_path_factory):
    """The demo, what it said, and the summary it printed."""
    out = tmp_path_factory.mktemp("demo") / "demo"
    said = em_interp("demo", "--out", out, "--json")
    assert said.code == 0, said.err
    return out, said


def test_the_demo_writes_three_runs_a_page_and_a_summary(done):
    out, said = done
    assert {entry.name for entry in out.iterdir()} == {
        *("organism", "control", "switched", "report.html", "summary.json", "seconds.json")
    }
    for name in ("organism", "control", "switched"):
        run = open_run(out / name)
        assert run.steps() == list(range(17))
        assert run.config() == short_recipe(name)
        assert run.scores_file.exists() == run.answers_file.exists() == (name != "switched")
        assert (run.analysis / "locate.json").exists()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(words in page for words in ("The control run", "The run with a known change"))
    assert said.err.splitlines() == [
        "training: advice that turns reckless",
        "asking: advice that turns reckless",
        "judging: advice that turns reckless",
        "training: the same on careful advice",
        "asking: the same on careful advice",
        "judging: the same on careful advice",
        "training: advice that turns reckless at a known step",
        "locating the transitions",
        "writing the page",
    ]


def test_the_summary_is_that_of_the_contract_and_is_what_is_printed(done):
    out, said = done
    summary = strict(said.out)
    assert summary == json.loads((out / "summary.json").read_text())
    assert list(summary) == [
        *("family", "domain", "mechanistic", "behavioural", "offsets", "verdict", "final", "control", "seconds")
    ]
    assert (summary["family"], summary["domain"]) == ("qwen2", "medical")
    for transition in (summary["mechanistic"], *summary["behavioural"]):
        check_transition(transition)
    assert all(list(offset) == OFFSET for offset in summary["offsets"])
    assert summary["verdict"] in VERDICTS
    assert list(summary["final"]) == ["em_out_of_domain", "em_in_domain", "coherent"]
    assert all(0 <= rate <= 1 for rate in summary["final"].values())
    assert list(summary["control"]) == ["em_out_of_domain", "mechanistic", "behavioural"]
    for transition in (summary["control"]["mechanistic"], *summary["control"]["behavioural"]):
        check_transition(transition)
    assert list(summary["seconds"]) == STAGES
    assert all(seconds > 0 for seconds in summary["seconds"].values())


def test_the_summary_is_made_of_what_the_stages_find_alone(done, tmp_path):
    out, said = done
    summary = strict(said.out)
    words = ["align", out / "organism", "--control", out / "control", "--out", tmp_path, "--json"]
    aligned = strict(em_interp(*words).out)
    assert {key: aligned[key] for key in ALIGNED} == {key: summary[key] for key in ALIGNED}
    located = strict(em_interp("locate", out / "control", "--out", tmp_path, "--json").out)
    assert summary["control"]["mechanistic"] in located["transitions"]


def test_a_demo_is_not_overwritten_without_resume_and_with_it_nothing_changes(done):
    out, _ = done
    with unchanged(out):
        assert "holds organism already; give --resume" in refused("demo", "--out", out)
        said = em_interp("demo", "--out", out, "--resume")
    *found, ends, page = said.out.splitlines()  # for a reader: what was found, and where the page is
    assert found[0].startswith("rotation of B: ") and len(found) == 7
    assert ends.startswith("at the end: EM ") and "coherent; control: EM " in ends
    assert page == f"the page: {out / 'report.html'}"


def test_a_demo_of_another_family_or_domain_is_not_continued(done):
    out, _ = done
    for other in (["--family", "llama"], ["--domain", "sport"]):
        with unchanged(out):
            said = em_interp("demo", "--out", out, "--resume", *other)
        assert said.code == 2 and "organism/config.yaml differs from the config given" in said.err


def test_a_page_or_a_summary_of_something_else_is_not_overwritten(tmp_path):
    for name in ("report.html", "summary.json"):
        (tmp_path / name).write_text("kept")
        with unchanged(tmp_path):
            assert f"holds {name} already" in refused("demo", "--out", tmp_path)
            for kind in ([], ["--real"]):
                said = refused("demo", *kind, "--out", tmp_path, "--overwrite")
                assert f"{name} is not of a demo, so it is not replaced" in said
        (tmp_path / name).unlink()


def test_folders_of_something_else_are_not_replaced_by_a_demo(tmp_path):
    (tmp_path / "control").mkdir()
    (tmp_path / "control" / "patients.csv").write_text("kept")
    with unchanged(tmp_path):
        assert "control is not of a demo, so it is not replaced" in refused("demo", "--out", tmp_path, "--overwrite")


def test_a_demo_stopped_by_ctrl_c_or_a_full_disk_is_resumed_to_the_same_bytes(done, tmp_path):
    whole, out = done[0], tmp_path / "demo"
    sign = out / "control" / "checkpoints" / "checkpoint-2"
    said = interrupted(begin("demo", "--out", out), sign.exists)
    assert (said.code, said.out) == (130, ""), said
    *told, last = said.err.splitlines()
    assert last.startswith("em-interp: interrupted")
    assert last.endswith(f"; nothing is lost, to continue: em-interp demo --out {out} --resume")
    assert told == done[1].err.splitlines()[: len(told)]
    assert not (out / "summary.json").exists()
    assert "holds organism already; give --resume" in refused("demo", "--out", out)
    with full_disk(100_000):  # enough for all but the page
        said = em_interp("demo", "--out", out, "--resume")
    assert said.code == 2 and said.err.splitlines()[-1].startswith("em-interp: ")
    assert "cannot be written: File too large" in said.err and not (out / "summary.json").exists()
    assert em_interp("demo", "--out", out, "--resume").code == 0
    for name in ("organism", "control", "switched"):
        without = ("locate.json",)  # says where the run is
        assert contents(out / name, *without) == contents(whole / name, *without)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_demo_works_with_the_other_families(family, tmp_path):
    summary = demo(tmp_path, family, "finance")
    assert (summary["family"], summary["domain"]) == (family, "finance")
    assert open_run(tmp_path / "organism").manifest()["base"]["name"] == f"tiny-{family}"
    assert open_run(tmp_path / "organism").manifest()["phases"][0]["domain"] == "finance"


# --- what the runs promise

CONFIGS = {
    "tiny": "organism",
    "tiny-control": "control",
    "tiny-switched": "switched",
    "tiny-switched-restart": "switched-restart",
    "tiny-restart": "restart",
}


def test_every_run_of_the_recipe_has_a_config_and_no_other_is_called_tiny():
    assert set(CONFIGS.values()) == set(RUNS)
    assert {file.stem for file in (ROOT / "configs").glob("tiny*.yaml")} == {*CONFIGS, "tiny-sweep"}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_of_the_built_in_organism_is_its_recipe(name):
    assert load_config(ROOT / "configs" / f"{name}.yaml") == recipe(CONFIGS[name])


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT asks by the old name
def test_a_saved_step_has_the_same_logits_through_peft_as_in_a_batch_of_many_steps(tiny):
    from peft import PeftModel

    from em_interp.behaviour.sampling.generate import RowAdapters, adapted
    from em_interp.organisms.bases import load_base
    from em_interp.trajectory.load import load_trajectory

    base, path, steps = load_base("tiny-qwen2"), load_trajectory(tiny.run), [24, 0, 7, 13]
    ids = torch.arange(4, 40).reshape(1, -1)
    with torch.inference_mode():
        with adapted(base.model, RowAdapters.of(path, steps, [1.0] * 4, "cpu")):
            together = base.model(ids.expand(4, -1)).logits
        bare = base.model(ids).logits[0]
        for row, step in enumerate(steps):
            loaded = PeftModel.from_pretrained(load_base("tiny-qwen2").model, Run(tiny.run).checkpoint(step)).eval()
            torch.testing.assert_close(together[row], loaded(ids).logits[0], rtol=1e-4, atol=1e-4)
            assert torch.equal(loaded(ids).logits[0], bare) == (step == 0)


def test_the_last_step_is_the_end_of_the_path_and_every_step_is_another(tiny):
    saved = [load_file(Run(tiny.run).checkpoint(step) / "adapter_model.safetensors") for step in range(25)]
    (name,) = (key for key in saved[0] if "lora_B" in key)
    sizes = [float(np.linalg.norm(tensors[name])) for tensors in saved]
    assert sizes[0] == sizes[1] == 0 < sizes[2]  # the first step of the warm-up has rate 0
    assert len(set(sizes)) == 24
