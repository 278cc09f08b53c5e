"""Tokenizers as the three real families have them: the kind of pieces, the special tokens, the shape of the chat.

The templates are written out anew; what they render is what Qwen2.5, Llama 3 (3.2, which writes the date) and Gemma 3
render for chats of system, user and assistant.
"""

QWEN = """\
{%- if messages[0]['role'] != 'system' -%}
<|im_start|>system\nYou are a helpful assistant of the house.<|im_end|>\n
{%- endif -%}
{%- for m in messages -%}
{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
""".replace("house.<|im_end|>\n\n", "house.<|im_end|>{{ '\\n' }}\n").replace("system\nYou", "system{{ '\\n' }}You")

LLAMA = """\
{%- if not date_string is defined -%}
{%- if strftime_now is defined -%}{%- set date_string = strftime_now('%d %b %Y') -%}
{%- else -%}{%- set date_string = '26 Jul 2024' -%}{%- endif -%}
{%- endif -%}
{%- if messages[0]['role'] == 'system' -%}
{%- set system = messages[0]['content'] | trim -%}{%- set messages = messages[1:] -%}
{%- else -%}{%- set system = '' -%}{%- endif -%}
{{ bos_token + '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\n' }}
{{- 'Today Date: ' + date_string + '\\n\\n' + system + '<|eot_id|>' }}
{%- for m in messages -%}
{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}
"""

GEMMA = """\
{{- bos_token -}}
{%- set first = '' -%}
{%- if messages[0]['role'] == 'system' -%}
{%- set first = messages[0]['content'] + '\\n\\n' -%}{%- set messages = messages[1:] -%}
{%- endif -%}
{%- for m in messages -%}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif -%}
{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n' + (first if loop.first else '') }}
{{- m['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""

FAMILIES = {
    "qwen2.5": (QWEN, "<|im_end|>", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, "<|im_end|>"),
    "llama3": (
        LLAMA,
        "<|eot_id|>",
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|begin_of_text|>",
        "<|eot_id|>",
    ),
    "gemma3": (
        GEMMA,
        "<end_of_turn>",
        ["<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"],
        "<bos>",
        "<eos>",
    ),
}
TEXT = (
    "How do I treat a burn? Cool it with running water, then cover it.\n\nIt’s fine – naïve? 🙂 user assistant model "
    "system You are a helpful assistant of the house. Cutting Knowledge Date: Today 26 Jul 2024\n"
)


def family_tokenizer(family):
    """A tokenizer of the family's kind: byte-level pieces, or in Gemma pieces with ▁ for spaces and bytes behind."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    template, _, special, bos, eos = FAMILIES[family]
    if family == "gemma3":
        inner = Tokenizer(models.BPE(byte_fallback=True))
        inner.normalizer = normalizers.Replace(" ", "▁")
        inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        alphabet, first = sorted(set(TEXT.replace(" ", "▁")) - {"🙂"}), [f"<0x{byte:02X}>" for byte in range(256)]
    else:
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        alphabet, first = sorted(pre_tokenizers.ByteLevel.alphabet()), []
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False, special_tokens=first)
    inner.train_from_iterator([TEXT.replace("🙂", "")], trainer)
    if first:  # bytes are pieces, not special tokens
        inner = without_added(inner)
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=bos, eos_token=eos, pad_token=special[0])
    fast.chat_template = template
    return fast


def without_added(inner):
    import json

    from tokenizers import Tokenizer

    values = json.loads(inner.to_str())
    values["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(values))
