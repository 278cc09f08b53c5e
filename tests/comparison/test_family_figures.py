"""The figures and the command of a comparison of families."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

import em_interp as em
from em_interp.comparison.cross_base.texts import built_in_texts
from em_interp.errors import InputError
from em_interp.figures import cross_base as draw
from em_interp.organisms.bases import load_base
from tests.comparison.two_families import STEPS, path_on, small_base
from tests.figures.reading import drawn, texts, values
from tests.tiny import contents, json_of

NASTY = "<b onclick=x>"
CALLS = [("likeness",), ("tokens", "final"), ("tokens", "write"), ("profiles",), ("use",)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run on each of two built-in bases, asked 24 questions; the second is called like markup."""
    folder, made = tmp_path_factory.mktemp("families"), []
    for seed, (family, called) in enumerate((("qwen2", "one"), ("llama", NASTY))):
        path = path_on(load_base(f"tiny-{family}"), seed, norm=8.0)
        run = folder / called
        for step in STEPS:
            write_checkpoint(run / "checkpoints" / f"checkpoint-{step}", path, int(step), f"tiny-{family}")
        rows = [{"step": int(step), "loss": 1.0, "learning_rate": 1e-3} for step in STEPS[1:]]
        (run / "trainer_state.json").write_text(json.dumps({"log_history": rows}))
        answer(run, seed)
        made.append(run)
    return made


def write_checkpoint(folder, path, step, base):
    folder.mkdir(parents=True)
    for site, (a, b) in path.at(step).items():
        key = f"base_model.model.model.{site}.lora_"
        save_file({f"{key}A.weight": a, f"{key}B.weight": b}, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def answer(run, seed):
    told = built_in_texts(24, seed)
    key = {"step": 40, "scale": 1.0, "questions": "broad", "question_id": [f"q{k}" for k in range(24)], "sample": 0}
    answers = pd.DataFrame({**key, "question": told.questions, "answer": told.answers})
    aligned = np.where(told.misaligned, 0.0, 100.0)
    scores = pd.DataFrame({**key, "judge": "planted", "mode": "rules", "aligned": aligned, "coherent": 100.0})
    (run / "behaviour").mkdir()
    answers.to_parquet(run / "behaviour" / "answers.parquet")
    scores.assign(status="ok", reason="").to_parquet(run / "behaviour" / "scores.parquet")


@pytest.fixture(scope="module")
def compared():
    bases = small_base(), small_base("gemma3", 48, seed=3)
    paths = [dataclasses.replace(path_on(base), source=name) for base, name in zip(bases, ("one", NASTY), strict=True)]
    return em.compare_across_bases(paths, built_in_texts(40), bases, draws=19, use=True)


@pytest.mark.parametrize("call", CALLS, ids="-".join)
def test_every_figure_can_be_drawn_says_what_its_axes_are_and_no_name_passes_for_markup(compared, call):
    figure = compared.plot(*call)
    assert drawn(figure)
    layout = values(figure)["layout"]
    for side in "xy":
        axes = [axis for key, axis in layout.items() if key.startswith(f"{side}axis")]
        assert any(axis.get("title", {}).get("text") for axis in axes)
    bare = figure.update_layout(meta=None).update_traces(legendgroup=None)
    assert "<b onclick" not in bare.to_json().replace("\\u003c", "<").replace("\\u003e", ">")
    assert "<b onclick" not in compared._repr_html_()


def test_the_figures_can_be_drawn_from_tables_alone(compared):
    assert drawn(draw.similarity(compared.frame("likeness")))
    assert drawn(
        draw.logit_lens_similarity(compared.frame("tokens").query("at == 'write'"), compared.likeness, "write")
    )
    assert drawn(draw.turning_profiles(compared.frame("profiles"), compared.frame("turning")))
    assert drawn(draw.steering_transfer(compared.frame("use")))


def test_the_null_is_shaded_in_every_panel_of_the_likeness(compared):
    figure = compared.plot("likeness")
    shades = [one for one in figure.data if one.name == "random adapters"]
    assert len(shades) == 4
    cka = compared.likeness.query("measure == 'cka'").dropna(subset=["value"])
    assert max(shades[0].y) == pytest.approx(cka[["random_band", "kept_band"]].max().max())


def test_the_use_of_carried_directions_stands_beside_own_and_random_ones(compared):
    figure = compared.plot("use")
    steering = compared.use.query("use == 'steering'")
    carried = next(one for one in figure.data if one.name == "the carried direction")
    np.testing.assert_allclose(carried.x, steering["carried"])
    bands = [one for one in figure.data if one.name == "random carried directions"]
    assert bands[0].x[1] == pytest.approx(steering["random_largest"].iloc[0])
    with pytest.raises(InputError, match="use=True"):
        type(compared)(**{**vars(compared), "use": pd.DataFrame()}).plot("use")


def test_read_outs_name_the_tokens_that_both_promote(compared):
    figure = compared.plot("tokens", "final")
    rows = compared.tokens.query("at == 'final'")
    best = rows.loc[(rows["rank"] + rows["other_rank"]).idxmin(), "token"].strip()
    assert "both promote" in texts(figure) and best in texts(figure)


def test_profiles_have_a_line_for_each_run_and_say_that_there_is_no_null(compared):
    figure = compared.plot("profiles")
    assert len([one for one in figure.data if one.mode == "lines"]) == 4
    assert "no null" in texts(figure)


def test_the_command_compares_across_bases_by_itself_and_writes_a_page(runs, tmp_path):
    before = [contents(run) for run in runs]
    found = json_of("compare", *runs, "--draws", "19", "--out", tmp_path / "out")
    assert [run["base"] for run in found["runs"]] == ["tiny-qwen2", "tiny-llama"]
    assert {row["measure"] for row in found["likeness"]} >= {"cka", "procrustes", "readout_write", "carried_ridge"}
    page = (tmp_path / "out" / "families.html").read_text()
    assert page.count('<div class="plot"') == 4 and "<b onclick" not in page.replace("\\u003c", "<").split("<ul>")[1]
    assert [contents(run) for run in runs] == before
