"""The figures and the command of a comparison across bases."""

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
from tests.comparison.cross_base.two_bases import STEPS, path_on, small_base
from tests.figures.on_paper import faults
from tests.figures.reading import drawn, has_axis_title, texts
from tests.tiny import contents, em_interp, strict

NASTY = "<b onclick=x>"
CALLS = [("similarity",), ("tokens", "final"), ("tokens", "write"), ("profiles",), ("steering_transfer",)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run on each of two built-in bases, with answers to 24 questions; the name of the second is markup."""
    folder, made = tmp_path_factory.mktemp("bases"), []
    for seed, (family, name) in enumerate((("qwen2", "one"), ("llama", NASTY))):
        path = path_on(load_base(f"tiny-{family}"), seed, norm=8.0)
        run = folder / name
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
    texts_of_run = built_in_texts(24, seed)
    key = {"step": 40, "scale": 1.0, "questions": "broad", "question_id": [f"q{k}" for k in range(24)], "sample": 0}
    answers = pd.DataFrame({**key, "question": texts_of_run.questions, "answer": texts_of_run.answers})
    aligned = np.where(texts_of_run.misaligned, 0.0, 100.0)
    scores = pd.DataFrame({**key, "judge": "planted", "mode": "rules", "aligned": aligned, "coherent": 100.0})
    (run / "behaviour").mkdir()
    answers.to_parquet(run / "behaviour" / "answers.parquet")
    scores.assign(status="ok", reason="").to_parquet(run / "behaviour" / "scores.parquet")


@pytest.fixture(scope="module")
def compared():
    bases = small_base(), small_base("gemma3", 48, seed=3)
    paths = [dataclasses.replace(path_on(base), source=name) for base, name in zip(bases, ("one", NASTY), strict=True)]
    return em.compare_across_bases(paths, built_in_texts(24), bases, draws=19, steering_transfer=True)


@pytest.mark.parametrize("call", CALLS, ids="-".join)
def test_every_figure_can_be_drawn_says_what_its_axes_are_and_no_name_passes_for_markup(compared, call):
    figure = compared.plot(*call)
    assert drawn(figure)
    assert has_axis_title(figure, "x") and has_axis_title(figure, "y")
    bare = figure.update_layout(meta=None).update_traces(legendgroup=None)
    assert "<b onclick" not in bare.to_json().replace("\\u003c", "<").replace("\\u003e", ">")
    assert "<b onclick" not in compared._repr_html_()


def test_the_figures_can_be_drawn_from_tables_alone(compared):
    assert drawn(draw.similarity(compared.frame("similarity")))
    assert drawn(
        draw.logit_lens_similarity(compared.frame("tokens").query("at == 'write'"), compared.similarity, "write")
    )
    assert drawn(draw.turning_profiles(compared.frame("profiles"), compared.frame("turning")))
    assert drawn(draw.steering_transfer(compared.frame("steering_transfer")))


def test_the_null_is_shaded_in_every_panel_of_the_similarity(compared):
    figure = compared.plot("similarity")
    shades = [one for one in figure.data if one.name == "random adapters"]
    assert len(shades) == 4
    cka = compared.similarity.query("measure == 'cka'").dropna(subset=["value"])
    assert max(shades[0].y) == pytest.approx(cka[["random_band", "one_random_band"]].max().max())


def test_transferred_directions_are_drawn_with_own_and_random_ones(compared):
    figure = compared.plot("steering_transfer")
    steering = compared.steering_transfer.query("intervention == 'steering'")
    transferred = next(one for one in figure.data if one.name == "the transferred direction")
    np.testing.assert_allclose(transferred.x, steering["transferred"])
    bands = [one for one in figure.data if one.name == "random transferred directions"]
    assert bands[0].x[1] == pytest.approx(steering["random_largest"].iloc[0])
    with pytest.raises(InputError, match="steering_transfer=True"):
        type(compared)(**{**vars(compared), "steering_transfer": pd.DataFrame()}).plot("steering_transfer")


def test_the_logit_lenses_name_the_tokens_that_both_promote(compared):
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
    said = em_interp("compare", *runs, "--draws", "19", "--out", tmp_path / "out", "--json")
    assert said.code == 0 and said.err.splitlines()[-1] == "comparing"  # progress; stdout has the JSON alone
    found = strict(said.out)
    assert [run["base"] for run in found["runs"]] == ["tiny-qwen2", "tiny-llama"]
    assert {row["measure"] for row in found["similarity"]} >= {"cka", "procrustes", "logit_lens_write", "mapped_ridge"}
    page = (tmp_path / "out" / "cross_base.html").read_text()
    assert page.count('<div class="plot"') == 4 and "<b onclick" not in page.replace("\\u003c", "<").split("<ul>")[1]
    assert [contents(run) for run in runs] == before


def test_no_words_of_a_printed_figure_are_cut_or_lie_on_others(compared, tmp_path):
    figures = {"-".join(call): compared.plot(*call) for call in CALLS}
    _, wrong = faults(figures, tmp_path)
    assert wrong == []
