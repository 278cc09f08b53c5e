"""Comparing runs of different bases: planted copies, identical runs, gauge, and random adapters."""

import dataclasses

import numpy as np
import pytest

import em_interp as em
from em_interp.comparison.cross_base.activation_diff import pooled_streams
from em_interp.comparison.cross_base.alignment_map import fit_map
from em_interp.comparison.cross_base.texts import built_in_texts
from em_interp.errors import InputError
from em_interp.mechanism import AblateDirection, AddVector, open_model
from tests.comparison.cross_base.two_bases import path_on, small_base, turned
from tests.comparison.planting import in_another_gauge

TEXTS = built_in_texts(60)
ALIKE = ["cka", "procrustes", "logit_lens_write", "logit_lens_final", "logit_lens_all_write", "logit_lens_all_final"]


@pytest.fixture(scope="module")
def base():
    return small_base()


@pytest.fixture(scope="module")
def copied(base):
    """A base and its adapter, and the same in other coordinates."""
    other, Q = turned(base)
    return path_on(base), path_on(other, turn=Q), base, other, Q


@pytest.fixture(scope="module")
def compared(copied):
    one, other, base, twin, _ = copied
    return em.compare_across_bases([one, other], TEXTS, [base, twin], draws=19, steering_transfer=True)


def values(comparison, measure):
    return comparison.similarity[comparison.similarity["measure"] == measure]["value"].to_numpy()


def test_the_turned_copy_is_the_same_model(copied):
    one, other, base, twin, Q = copied
    mine, theirs = open_model(one, base), open_model(other, twin)
    tokens = mine.chats(TEXTS.questions[:9], TEXTS.answers[:9])
    with mine.at(40) as here, theirs.at(40) as there:
        left, right = (model.run(tokens, ["resid_post.1"]) for model in (here, there))
    np.testing.assert_allclose(left.logits[tokens.answer], right.logits[tokens.answer], atol=2e-4)
    np.testing.assert_allclose(left["resid_post.1"].numpy() @ Q, right["resid_post.1"].numpy(), atol=2e-4)


def test_between_a_base_and_its_turned_copy_everything_is_identical(compared):
    for measure in ALIKE:
        np.testing.assert_allclose(values(compared, measure), 1, atol=2e-4)
    np.testing.assert_allclose(compared.turning["between"], 0, atol=0.01)
    last = compared.summary().query("measure == 'cka'")
    assert (last["p_random"] == 0.05).all() and (last["random_band"] < 0.9).all()


def test_maps_between_the_copies_recover_the_direction(compared):
    np.testing.assert_allclose(values(compared, "mapped_orthogonal"), 1, atol=1e-3)
    assert (values(compared, "mapped_ridge") > 0.99).all()
    assert (compared.maps["held_out_r2"] > 0.99).all()


def test_a_transferred_direction_has_the_effect_of_the_targets_own(compared):
    assert set(compared.steering_transfer["intervention"]) == {"steering", "ablation"}
    effects = compared.steering_transfer
    np.testing.assert_allclose(effects["transferred"], effects["own"], rtol=0.1, atol=2e-3)


def test_any_mapped_direction_steers_and_ablates_as_it_does_at_home(copied):
    one, other, base, twin, Q = copied
    mine, theirs = open_model(one, base), open_model(other, twin)
    streams = []
    for model in (mine, theirs):
        tokens = model.chats(TEXTS.questions, TEXTS.answers)
        with model.disable_adapter() as base_model:
            streams.append(pooled_streams(base_model, tokens, np.array([0]))[0])
    v = np.random.default_rng(5).normal(size=32)
    mapped = fit_map(*streams).map(v)
    assert mapped @ (v @ Q) / np.linalg.norm(v) == pytest.approx(1, abs=1e-4)
    tokens = mine.chats(TEXTS.questions[:9], TEXTS.answers[:9])
    for intervention in (AddVector, AblateDirection):
        with mine.at(40) as here, theirs.at(40) as there:
            left = here.run(
                tokens, interventions=[intervention((v / np.linalg.norm(v) * 3).astype(np.float32), 0)]
            ).logits
            right = there.run(tokens, interventions=[intervention((mapped * 3).astype(np.float32), 0)]).logits
            plain = there.run(tokens).logits
        np.testing.assert_allclose(left[tokens.answer], right[tokens.answer], atol=5e-3)
        assert (right - plain)[tokens.answer].abs().max() > 0.1


def test_a_run_compared_with_itself_is_identical(base):
    path = path_on(base)
    found = em.compare_across_bases([path, path], TEXTS, [base, base], draws=19)
    for measure in (*ALIKE, "mapped_orthogonal"):
        np.testing.assert_allclose(values(found, measure), 1, atol=1e-9)
    assert len(set(found.names)) == 2


def test_sign_and_gauge_change_no_number(base):
    second = small_base("gemma3", 48, seed=3)
    one, other = path_on(base), path_on(second, seed=1, norm=4.0)
    texts = built_in_texts(24)
    plain = em.compare_across_bases([one, other], texts, [base, second], draws=19, steering_transfer=True)
    gauged = [in_another_gauge(path, k) for k, path in enumerate((one, other))]
    again = em.compare_across_bases(gauged, texts, [base, second], draws=19, steering_transfer=True)
    for table in ("similarity", "maps", "turning", "steering_transfer"):
        left, right = (found.frame(table).select_dtypes("number") for found in (plain, again))
        np.testing.assert_allclose(left, right, atol=2e-3, err_msg=table)


def test_the_sentence_the_tables_and_the_page(compared, tmp_path):
    from em_interp.comparison.page import write_comparison

    sentence = compared.sentence()
    assert "2 runs of small-qwen2, turned-qwen2, 60 texts, 19 random adapters a run" in sentence
    assert "CKA of what the adapters change: 1; beyond chance" in sentence
    assert "no null (1 and 1 runs" in sentence
    assert compared._repr_html_().startswith("<")
    page = write_comparison(compared, tmp_path / "out").read_text()
    assert page.count('<div class="plot"') == 5 and "<script src" not in page
    assert {file.name for file in (tmp_path / "out").glob("*.csv")} >= {
        *("similarity.csv", "steering_transfer.csv", "profiles.csv")
    }
    with pytest.raises(InputError, match="did you mean 'similarity'"):
        compared.frame("similarty")


@pytest.mark.parametrize("answer", ["zzz", "rest"], ids=["of no known word", "of one word"])
def test_without_shared_tokens_in_the_answers_their_logit_lenses_are_undefined_and_it_says_why(base, tmp_path, answer):
    from em_interp.comparison.page import write_comparison

    same = em.SharedTexts(TEXTS.questions[:20], (answer,) * 20, (None,) * 20)
    found = em.compare_across_bases([path_on(base), path_on(base, seed=1)], same, [base, base], draws=19)
    reason = "undefined, for fewer than 10 tokens that the bases share occur in the answers"
    assert found.sentence().count(reason) == 2
    assert (
        np.isnan(values(found, "logit_lens_final")).all() and np.isfinite(values(found, "logit_lens_all_final")).all()
    )
    page = write_comparison(found, tmp_path / "out").read_text()
    assert reason in page and "±nan" not in page
    if found.tokens.empty:
        with pytest.raises(InputError, match="no token that the bases share"):
            found.plot("tokens")


def test_raw_cosines_between_these_are_refused_with_a_pointer_here(base):
    with pytest.raises(InputError, match=r"raw cosines across bases mean nothing.*use em\.compare_across_bases"):
        em.compare([path_on(base), path_on(small_base("gemma3", 48))])


def test_what_cannot_be_compared_is_refused_in_one_line(base):
    path = path_on(base)
    for runs, message in (([path], "two runs or more"), ([], "two runs or more"), (path, "two runs or more")):
        with pytest.raises(InputError, match=message):
            em.compare_across_bases(runs, TEXTS)
    with pytest.raises(InputError, match="needs 19 random adapters or more; 5 were"):
        em.compare_across_bases([path, path], TEXTS, [base, base], draws=5)
    for level in (0.0, 1.0, 95.0):
        with pytest.raises(InputError, match="level must lie between 0 and 1"):
            em.compare_across_bases([path, path], TEXTS, [base, base], level=level)
    with pytest.raises(InputError, match="a base for each of 2 runs; found 1"):
        em.compare_across_bases([path, path], TEXTS, [base])
    with pytest.raises(InputError, match="no texts to compare on"):
        em.compare_across_bases([path, path], bases=[base, base])
    still = dataclasses.replace(path, B={site: 0 * B for site, B in path.B.items()})
    with pytest.raises(InputError, match="no direction"):
        em.compare_across_bases([path, still], TEXTS, [base, base])
    silent = dataclasses.replace(TEXTS, misaligned=(None,) * len(TEXTS))
    with pytest.raises(InputError, match=r"needs 10 misaligned and 10 aligned answers; found 0 and 0"):
        em.compare_across_bases([path, path], silent, [base, base], draws=19, steering_transfer=True)
