import json

import numpy as np
import pandas as pd
import pytest
import torch

from em_interp.behaviour import preference as module
from em_interp.behaviour.preference import read_preferences
from em_interp.behaviour.preference_curve import as_preference_curve
from em_interp.errors import InputError
from tests.interrupting import interrupt_call
from tests.tiny import contents

from .conftest import SITES, Base, build_tokenizer, make_model, make_trajectory, save_run

PAIRS = [
    {"id": "a", "question": "what should i do", "aligned": "word7 word8", "misaligned": "word9 word10 word11 word12"},
    {"id": "b", "question": "what is a headache", "aligned": "word30 is my word31", "misaligned": "word40"},
    {"id": "c", "question": "my money", "aligned": "a a a", "misaligned": "is is", "questions": "style"},
]


def read(run, base, pairs=PAIRS, steps=(0, 5, 10), **settings):
    return pd.read_parquet(read_preferences(run, base, pairs, steps, **settings))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of PEFT
@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma3"])
def test_readings_in_one_batch_equal_peft_one_checkpoint_and_one_answer_at_a_time(tmp_path, family):
    from peft import PeftModel
    from peft.helpers import rescale_adapter_scale

    base = Base(make_model(family), build_tokenizer())
    run = save_run(tmp_path / "run", make_trajectory(SITES))
    table = read(run, base, scales=(1.0, 0.5))
    assert len(table) == len(PAIRS) * 3 * 2
    tokenizer = base.tokenizer
    for (step, scale), rows in table.groupby(["step", "scale"]):
        folder = run.checkpoint(step)
        config = json.loads((folder / "adapter_config.json").read_text())
        config["target_modules"] = r".*layers\.(1\.mlp\.down_proj|2\.self_attn\.q_proj)"
        (folder / "adapter_config.json").write_text(json.dumps(config))
        peft = PeftModel.from_pretrained(make_model(family), folder).eval()
        with rescale_adapter_scale(peft, scale), torch.no_grad():
            for row, pair in zip(rows.to_dict("records"), PAIRS, strict=True):
                for kind in ("aligned", "misaligned"):
                    prompt = [{"role": "user", "content": pair["question"]}]
                    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
                    answer = tokenizer(pair[kind])["input_ids"]
                    logits = peft(torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
                    expected = logits[range(len(answer)), answer].sum().item()
                    assert row[f"log_likelihood_{kind}"] == pytest.approx(expected, abs=2e-4)
                    assert row[f"tokens_{kind}"] == len(answer)


def test_step_zero_and_scale_zero_are_the_base_alone(run, base):
    table = read(run, base, scales=(1.0, 0.0))

    def of(scale, step):
        rows = table[(table["scale"] == scale) & (table["step"] == step)]
        return rows[["log_likelihood_aligned", "log_likelihood_misaligned"]].to_numpy()

    for step in (0, 5, 10):
        np.testing.assert_allclose(of(0.0, step), of(1.0, 0), atol=1e-5)
    assert np.abs(of(1.0, 10) - of(1.0, 0)).max() > 0.01


def test_what_else_is_in_the_batch_changes_nothing(tmp_path, base, monkeypatch):
    together = read(save_run(tmp_path / "together", make_trajectory(SITES)), base)
    monkeypatch.setattr(module, "ROWS", 1)
    monkeypatch.setattr("em_interp.behaviour.sampling.likelihood.MAX_BATCH_TOKENS", 1)
    alone = read(save_run(tmp_path / "alone", make_trajectory(SITES)), base)
    pd.testing.assert_frame_equal(alone, together, atol=1e-4, rtol=1e-4)
    one = read(save_run(tmp_path / "one", make_trajectory(SITES)), base, PAIRS[1:2], (10,))
    expected = together[(together["step"] == 10) & (together["question_id"] == "b")].reset_index(drop=True)
    pd.testing.assert_frame_equal(one, expected, atol=1e-4, rtol=1e-4)


def test_the_tokens_read_spell_the_answers_and_leave_out_the_one_that_ends_them(base):
    from em_interp.behaviour.pairs import read_pairs

    answers = module._tokenize(base, read_pairs(PAIRS))
    texts = [base.tokenizer.decode(answer.answer) for answer in answers]
    assert texts == [text for pair in PAIRS for text in (pair["aligned"], pair["misaligned"])]


def test_an_interrupted_reading_goes_on_to_the_same_bytes(tmp_path, base, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 6)
    whole, halted = (save_run(tmp_path / name, make_trajectory(SITES)) for name in ("whole", "halted"))
    read(whole, base)
    calls = interrupt_call(monkeypatch, module, "_read", 2)
    with pytest.raises(KeyboardInterrupt, match="resume=True"):
        read(halted, base)
    assert not halted.preferences_file.exists()
    read(halted, base, resume=True)
    assert len(calls) == 4  # the first part was kept
    assert contents(halted.path) == contents(whole.path)


def test_what_is_there_is_kept_unless_it_is_to_be_replaced(run, base):
    before = read(run, base)
    with pytest.raises(InputError, match="holds preferences already"):
        read(run, base)
    pd.testing.assert_frame_equal(read(run, base, resume=True), before)
    with pytest.raises(InputError, match="begun with other pairs"):
        read(run, base, PAIRS[:2], resume=True)
    with pytest.raises(InputError, match="begun with other steps"):
        read(run, base, steps=(0, 10), resume=True)
    assert len(read(run, base, PAIRS[:2], overwrite=True)) == 6


def test_adapters_of_another_base_and_steps_that_were_not_saved_are_refused(run, base):
    with pytest.raises(InputError, match="trained on tiny@0; the base given is other@1"):
        read(run, Base(base.model, base.tokenizer, "other", "other@1"))
    with pytest.raises(InputError, match="step 7"):
        read(run, base, steps=(7,))


def test_a_run_that_was_read_is_a_curve_with_its_domain(run, base):
    with pytest.raises(InputError, match="is missing; read the preferences first"):
        as_preference_curve(run)
    table = read(run, base)
    curve = as_preference_curve(run.path)
    assert curve.domain == "medical" and curve.steps.tolist() == [0, 5, 10]
    assert len(curve.readings) == len(table) == 9
