import numpy as np
import pytest
import torch

from em_interp.behaviour.sampling.generate import RowAdapters, adapted, find_module, generate
from em_interp.errors import InputError
from tests.behaviour.conftest import SITES, make_trajectory

QUESTIONS = [
    "what should i do about a headache ?",
    "what is your wish ?",
    "i am bored . what should i do about my money ?",
]


def one_by_one(model, tokenizer, trajectory, step, scale, question, tokens):
    """The slow obvious way: PEFT, one checkpoint and question at a time, through transformers' own generate."""
    from peft import LoraConfig, get_peft_model

    rank = next(iter(trajectory.A.values())).shape[1]
    names = [name for name, _ in model.named_modules() for site in trajectory.sites if name.endswith(site)]
    peft = get_peft_model(model, LoraConfig(r=rank, lora_alpha=rank, target_modules=names))
    with torch.no_grad():
        for site, (a, b) in trajectory.at(step).items():
            module = find_module(peft, site)
            module.lora_A.default.weight.copy_(torch.from_numpy(a))
            module.lora_B.default.weight.copy_(torch.from_numpy(b) * trajectory.scale[site] * scale)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = peft.generate(**ids, max_new_tokens=tokens, do_sample=False)[0, ids["input_ids"].shape[1] :]
    peft.unload()
    return tokenizer.decode(out, skip_special_tokens=True).strip()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of PEFT
@pytest.mark.parametrize("rank", [1, 3])
def test_greedy_answers_equal_those_of_peft_one_checkpoint_at_a_time(model, tokenizer, rank):
    trajectory = make_trajectory(SITES, rank=rank)
    rows = [(step, scale, question) for step in (0, 5, 10) for scale in (0.5, 1.0) for question in QUESTIONS]
    steps, scales, questions = zip(*rows, strict=True)
    adapters = RowAdapters.of(trajectory, steps, scales, "cpu")
    fast = generate(model, tokenizer, questions, adapters, temperature=0, max_new_tokens=12)
    slow = [one_by_one(model, tokenizer, trajectory, *row, tokens=12) for row in rows]
    assert [answers[0] for answers in fast] == slow
    assert len(set(slow)) > 6  # the checkpoints do differ


def test_scale_0_gives_the_logits_of_the_base_exactly(model, tokenizer):
    trajectory = make_trajectory(SITES)
    ids = torch.randint(0, len(tokenizer), (4, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        base = model(ids).logits
        with adapted(model, RowAdapters.of(trajectory, [10] * 4, [0.0] * 4, "cpu")):
            assert torch.equal(model(ids).logits, base)
        with adapted(model, RowAdapters.of(trajectory, [10, 10, 0, 5], [0.0, 1.0, 1.0, 1.0], "cpu")):
            logits = model(ids).logits
        changed = [not torch.equal(logits[row], base[row]) for row in range(4)]
        assert changed == [False, True, False, True]
        assert torch.equal(model(ids).logits, base)  # nothing is left behind


def test_an_answer_does_not_depend_on_what_else_is_in_the_batch(model, tokenizer):
    trajectory = make_trajectory(SITES)
    alone = [
        generate(
            model, tokenizer, [q], RowAdapters.of(trajectory, [10], [1.0], "cpu"), temperature=0, max_new_tokens=15
        )
        for q in QUESTIONS
    ]
    adapters = RowAdapters.of(trajectory, [10] * 3, [1.0] * 3, "cpu")
    together = generate(model, tokenizer, QUESTIONS, adapters, samples=2, temperature=0, max_new_tokens=15)
    assert together == [[row[0][0]] * 2 for row in alone]


def test_sampling_repeats_with_its_seed_and_has_the_model_s_own_frequencies(qwen, tokenizer):
    trajectory = make_trajectory(SITES)
    adapters = RowAdapters.of(trajectory, [5, 10], [1.0, 1.0], "cpu")

    def sample(seed, n=4000):
        return generate(qwen, tokenizer, QUESTIONS[:2], adapters, samples=n, max_new_tokens=1, seed=seed)

    drawn = sample(1)
    assert drawn == sample(1) and drawn != sample(2)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTIONS[1]}], add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    with torch.no_grad(), adapted(qwen, adapters.rows(torch.tensor([1]))):
        probability = torch.softmax(qwen(ids).logits[0, -1], -1).numpy()
    likeliest = np.argsort(-probability)[:5]
    for token in likeliest:
        word = tokenizer.decode([token], skip_special_tokens=True).strip()
        same = [t for t in range(len(tokenizer)) if tokenizer.decode([t], skip_special_tokens=True).strip() == word]
        expected, seen = probability[same].sum(), drawn[1].count(word) / 4000
        assert abs(seen - expected) < 5 * np.sqrt(expected * (1 - expected) / 4000)


def test_answers_end_at_the_end_token_and_rows_that_go_on_are_not_disturbed(qwen, tokenizer):
    trajectory = make_trajectory(SITES)
    adapters = RowAdapters.of(trajectory, [10] * 60, [1.0] * 60, "cpu")
    answers = generate(qwen, tokenizer, QUESTIONS * 20, adapters, max_new_tokens=40, temperature=3.0)
    lengths = [len(tokenizer(answer[0], add_special_tokens=False).input_ids) for answer in answers]
    assert min(lengths) < 10 < 30 < max(lengths)


def test_no_questions_give_no_answers(qwen, tokenizer):
    assert generate(qwen, tokenizer, [], RowAdapters({}, {})) == []


def test_a_site_that_is_not_in_the_model_is_named_with_the_usual_cause(qwen, tokenizer):
    adapters = RowAdapters.of(make_trajectory({"layers.7.mlp.down_proj": (48, 32)}), [5], [1.0], "cpu")
    with pytest.raises(InputError, match=r"'layers.7.mlp.down_proj' is not in the model \(Qwen2.*did you mean"):
        generate(qwen, tokenizer, QUESTIONS[:1], adapters)


def test_a_site_of_other_dimensions_is_refused(qwen, tokenizer):
    adapters = RowAdapters.of(make_trajectory({"layers.1.mlp.down_proj": (47, 32)}), [5], [1.0], "cpu")
    with pytest.raises(InputError, match="is 47 → 32, the model's module 48 → 32"):
        generate(qwen, tokenizer, QUESTIONS[:1], adapters)


def test_an_ambiguous_site_lists_what_it_could_be(qwen):
    with pytest.raises(InputError, match=r"could be any of model.layers.0.mlp.down_proj, .*give more of its name"):
        find_module(qwen, "down_proj")
    assert find_module(qwen, "layers.1.mlp.down_proj") is qwen.model.layers[1].mlp.down_proj


def test_a_layer_is_not_found_by_the_end_of_a_number(qwen):
    with pytest.raises(InputError, match="is not in the model"):
        find_module(qwen, "ayers.1.mlp.down_proj")


def test_a_tokenizer_without_a_chat_template_is_refused(qwen, tokenizer):
    from copy import deepcopy

    bare = deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        generate(qwen, bare, ["what ?"], RowAdapters.of(make_trajectory(SITES), [5], [1.0], "cpu"))


def test_a_step_that_was_not_saved_is_refused():
    with pytest.raises(InputError, match="7"):
        RowAdapters.of(make_trajectory(SITES), [7], [1.0], "cpu")
