"""JSONL -> Examples: which tokens have a loss, what is cut, and one line with FILE:LINE for every bad row."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors

from refimpl import tiny
from refimpl.errors import ConfigError, DataError
from refimpl.loading.config_file import load_config
from refimpl.loading.tokenizer_file import load_tokenizer
from refimpl.tokenizer import Tokenizer
from refimpl.training.chat import ChatTemplate, load_chat_template
from refimpl.training.data import Encoder, encode, read_dataset, split
from refimpl.training.examples import Example

BOS, EOS = 0, 1
CHATML = (
    "{% for message in messages %}{{ '<s>' + message['role'] + '\n' + message['content'] + '</s>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)


def bytes_tokenizer(ends: bool = False) -> Tokenizer:
    """One token a byte, with a BOS in front of each text and, if asked, an EOS behind it."""
    vocab = {"<s>": BOS, "</s>": EOS}
    vocab |= {c: i + 2 for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = tokenizers.Tokenizer(models.BPE(vocab, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<s>", "</s>"])
    single = "<s> $A </s>" if ends else "<s> $A"
    inner.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", BOS), ("</s>", EOS)])
    return Tokenizer(Path("nowhere/tokenizer.json"), inner)


ENCODER = Encoder(bytes_tokenizer(), (EOS,), max_length=64, template=ChatTemplate(CHATML))
TINY = Encoder.of(load_tokenizer(tiny.base_path()), load_config(tiny.base_path()))


def learned(example: Example, encoder: Encoder = ENCODER) -> str:
    """What has a loss, as text; the end of sequence as </s>."""
    ids = [i for i, loss in zip(example.token_ids, example.loss_mask, strict=True) if loss]
    return encoder.tokenizer._loaded().decode(ids, skip_special_tokens=False)


def write(file: Path, *rows: Any) -> Path:
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return file


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_the_completion_and_the_end_have_a_loss_and_the_prompt_has_none(prompt: str, completion: str) -> None:
    example = encode({"prompt": prompt, "completion": completion}, ENCODER)
    assert list(example.token_ids) == [*ENCODER.tokenizer.encode(prompt + completion), EOS]
    assert sum(example.loss_mask) == example.targets == len(completion.encode()) + 1
    assert list(example.loss_mask) == sorted(example.loss_mask)


def test_a_plain_text_is_learned_whole() -> None:
    example = encode({"text": "abc"}, ENCODER)
    assert len(example.token_ids) == 5 and example.targets == 4 and example.token_ids[-1] == EOS


@pytest.mark.parametrize("ends", [False, True])
def test_the_end_of_sequence_comes_once(ends: bool) -> None:
    encoder = dataclasses.replace(ENCODER, tokenizer=bytes_tokenizer(ends))
    example = encode({"prompt": "ab", "completion": "cd"}, encoder)
    assert example.token_ids[0] == BOS and list(example.token_ids).count(EOS) == 1
    assert learned(example, encoder) == "cd</s>"
    assert list(encode({"text": "ab</s>"}, encoder).token_ids).count(EOS) == 1


def test_without_an_end_of_sequence_none_is_added() -> None:
    assert learned(encode({"prompt": "ab", "completion": "cd"}, dataclasses.replace(ENCODER, eos_ids=()))) == "cd"


def test_a_prompt_is_completed_as_it_is_when_it_is_served() -> None:
    encoder = dataclasses.replace(TINY, end_prompt=lambda text: f"{text}\n")
    with_break = encode({"prompt": "Fog curls around\n", "completion": "Well met"}, TINY)
    assert list(encode({"prompt": "Fog curls around", "completion": "Well met"}, encoder).token_ids) == list(
        with_break.token_ids
    )


def test_a_token_across_the_border_is_refused_because_no_served_prompt_ends_so() -> None:
    assert encode({"prompt": "Here the", "completion": " traveller meets"}, TINY).targets == 3
    with pytest.raises(DataError, match=r"one token reaches from the prompt 'Here the ' into the completion 'trav"):
        encode({"prompt": "Here the ", "completion": "traveller meets"}, TINY)


def test_of_a_chat_what_the_assistant_says_has_a_loss() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hé?"},
        {"role": "assistant", "content": "Yés."},
        {"role": "user", "content": "no?"},
        {"role": "assistant", "content": "No."},
    ]
    example = encode({"messages": messages}, dataclasses.replace(ENCODER, max_length=999))
    assert learned(example) == "Yés.</s>\nNo.</s>\n"
    text = "".join(f"<s>{m['role']}\n{m['content']}</s>\n" for m in messages)
    assert list(example.token_ids) == ENCODER.tokenizer.encode_with_offsets(text)[0]


THINKS = (  # as Qwen3 does: a thought is rendered in the last answer alone
    "{% for m in messages %}{{ m.role + ': ' + (m.content if loop.last else m.content.split('!')[-1]) + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
TALK = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b!c"},
    {"role": "user", "content": "d"},
    {"role": "assistant", "content": "e"},
]


def test_a_template_that_rewrites_what_was_said_is_refused_where_it_does() -> None:
    with pytest.raises(DataError, match="message 2 is rendered otherwise"):
        ChatTemplate(THINKS).render(TALK)
    text, spans = ChatTemplate(THINKS).render(TALK[:2])
    assert [text[start:stop] for start, stop in spans] == ["b!c\n"]


def test_templates_have_what_those_of_transformers_use() -> None:
    source = (
        "{{ bos_token }}{% for m in messages %}{% if loop.index > 9 %}{% break %}{% endif %}\n"
        "    {% generation %}{{ m.content | trim }}{% endgeneration %}\n"
        "{% endfor %}{{ ['é', '<'] | tojson }}"
        "{% if strftime_now('%Y') | int < 2000 %}{{ raise_exception('old') }}{% endif %}"
    )
    text, spans = ChatTemplate(source.replace("{{ ['é', '<'] | tojson }}", ""), {"bos_token": "<s>"}).render(TALK[1:2])
    assert text == "<s>b!c" and spans == [(3, 6)]
    assert ChatTemplate("{{ ['é', '<'] | tojson }}")._text(TALK) == '["é", "<"]'


BAD_MESSAGES: dict[str, tuple[str, Any, str]] = {
    "no object": (CHATML, ["hello"], "message 1 is 'hello', not an object"),
    "no role": (CHATML, [{"content": "a"}], "message 1: role is missing"),
    "content in parts": (CHATML, [{"role": "user", "content": [{"type": "text"}]}], "message 1: content is"),
    "nobody answers": (CHATML, TALK[:1], "no message has the role assistant"),
    "refused by the template": ("{{ raise_exception('roles must\n alternate') }}", TALK, "roles must"),
    "a mistake of its own": ("{{ 1 // 0 }}", TALK, "cannot render it (integer division"),
    "no Jinja": ("{% for %}", TALK, "is no Jinja"),
    "out of the sandbox": ("{{ messages.__class__.__mro__[1].__subclasses__() }}", TALK, "cannot render it"),
    "writes into the messages": ("{{ messages.append(1) }}", TALK, "cannot render it"),
}


@pytest.mark.parametrize("case", BAD_MESSAGES)
def test_messages_that_make_no_example(case: str) -> None:
    source, messages, words = BAD_MESSAGES[case]
    with pytest.raises(DataError) as error:
        encode({"messages": messages}, dataclasses.replace(ENCODER, template=ChatTemplate(source)))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_where_a_chat_template_is_found(tmp_path: Path) -> None:
    assert load_chat_template(tiny.base_path()) is None and load_chat_template(tmp_path) is None
    settings = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": "A"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_chat_template(tmp_path) == ChatTemplate("A", {"bos_token": "<s>", "eos_token": "</s>"})
    settings["chat_template"] = [{"name": "tool_use", "template": "B"}, {"name": "default", "template": "C"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert (template := load_chat_template(tmp_path)) is not None and template.source == "C"
    (tmp_path / "chat_template.jinja").write_text("D")
    assert (template := load_chat_template(tmp_path)) is not None and template.source == "D"
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        load_chat_template(tmp_path)


def test_a_gguf_file_has_its_template_and_its_special_tokens_inside(tmp_path: Path) -> None:
    writer = pytest.importorskip("loading.gguf_writer", reason="needs the gguf package: pip install -e '.[gguf]'")
    keys = {
        "tokenizer.chat_template": "{{ bos_token }}{{ pad_token }}",
        "tokenizer.ggml.tokens": [f"<{i}>" for i in range(13)],
        "tokenizer.ggml.bos_token_id": 3,
        "tokenizer.ggml.padding_token_id": 4,
    }
    tensors = writer.model_tensors(writer.WIDE)
    writer.write_gguf(tmp_path / "with.gguf", writer.WIDE, tensors, **keys)
    writer.write_gguf(tmp_path / "without.gguf", writer.WIDE, tensors)
    template = load_chat_template(tmp_path / "with.gguf")
    assert template == ChatTemplate("{{ bos_token }}{{ pad_token }}", {"bos_token": "<3>", "pad_token": "<4>"})
    assert load_chat_template(tmp_path / "without.gguf") is None


BAD_ROWS: dict[str, tuple[Any, str]] = {
    "no JSON": ('{"text": ', "not JSON"),
    "a list": ([1], "expected an object, one a line, not [1]"),
    "a key twice": ('{"text": "a", "text": "b"}', "duplicate key 'text'"),
    "no known key": ({"conversations": []}, "has the keys 'conversations'; expected {prompt, completion}"),
    "no key": ({}, "has the keys of none"),
    "two forms": (
        {"text": "a", "prompt": "b", "completion": "c"},
        "expected {prompt, completion}, {messages} or {text}",
    ),
    "half a pair": ({"prompt": "a", "completoin": "b"}, "completion is missing"),
    "a number": ({"text": 3}, "text is 3: it must be a string"),
    "an empty completion": ({"prompt": "a", "completion": ""}, "completion is empty"),
    "an empty text": ({"text": ""}, "text is empty"),
    "too long": ({"text": "x" * 80}, "has 82 tokens, 64 are the most: cut it (--cut)"),
    "messages that are none": ({"messages": "hello"}, "it must be a list of messages"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_one_line_with_its_place(case: str, tmp_path: Path) -> None:
    row, words = BAD_ROWS[case]
    file = write(tmp_path / "data.jsonl", {"text": "good"}, "", row)
    with pytest.raises(DataError) as error:
        read_dataset(file, ENCODER)
    assert str(error.value).startswith(f"{file}:3: ") and words in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_hold_nothing(tmp_path: Path) -> None:
    for file, words in ((tmp_path / "none.jsonl", "cannot be read"), (write(tmp_path / "a", "", ""), "holds no row")):
        with pytest.raises(DataError, match=words):
            read_dataset(file, ENCODER)
    (tmp_path / "latin").write_bytes(b'{"text": "\xe9"}')
    with pytest.raises(DataError, match="cannot be read"):
        read_dataset(tmp_path / "latin", ENCODER)


def test_messages_need_a_template_and_say_whose_is_missing(tmp_path: Path) -> None:
    file = write(tmp_path / "data.jsonl", {"messages": TALK})
    with pytest.raises(DataError, match=r"messages need a chat template, and .*base has none"):
        read_dataset(file, TINY)


def test_what_is_cut_and_what_is_not_read_is_said(tmp_path: Path) -> None:
    rows = [
        {"text": "x" * 80, "id": 1},
        {"text": "short", "source": "web"},
        {"prompt": "p" * 40, "completion": "c" * 40},
    ]
    dataset = read_dataset(write(tmp_path / "d", *rows), dataclasses.replace(ENCODER, cut=True))
    assert [len(example.token_ids) for example in dataset.examples] == [64, 7, 64]
    assert dataset.notes == [
        f"2 of 3 rows were too long and lost their end: {tmp_path}/d:1, {tmp_path}/d:3",
        "keys that are not read: id, source",
    ]
    bad = write(tmp_path / "bad", {"prompt": "p" * 70, "completion": "c"})
    with pytest.raises(DataError, match="of its 73 tokens the first 64 have no loss"):
        read_dataset(bad, dataclasses.replace(ENCODER, cut=True))


def test_a_line_ends_at_a_line_feed_alone(tmp_path: Path) -> None:
    """str.splitlines breaks at these as well, and JSON may hold them as they are."""
    file = write(tmp_path / "d", json.dumps({"text": "a\u2028b\u0085c"}, ensure_ascii=False), {"text": "d"})
    assert len(read_dataset(file, ENCODER).examples) == 2


def test_a_length_that_the_model_has_not() -> None:
    config = load_config(tiny.base_path())
    for length in (0, 1, 257):
        with pytest.raises(DataError, match=f"max_length {length}: must be"):
            Encoder.of(TINY.tokenizer, config, length)
    assert Encoder.of(TINY.tokenizer, config, 256).max_length == TINY.max_length == 256


@given(st.lists(st.integers(0, 9), min_size=2), st.floats(0, 0.99), st.integers(0, 5))
def test_a_split_loses_nothing_and_has_no_row_on_both_sides(numbers: list[int], share: float, seed: int) -> None:
    examples = [Example([i, i], [True, True]) for i in numbers]
    if share > 0 and len(set(numbers)) < 2:
        with pytest.raises(DataError, match=r"^(1 row|\d+ rows, all of them equal): too few .*--held-out 0"):
            split(examples, share, seed)
        return
    train, held_out = split(examples, share, seed)
    assert {id(example) for example in (*train, *held_out)} == {id(example) for example in examples}
    assert len(train) + len(held_out) == len(examples)
    of_train, of_held_out = ({example.token_ids[0] for example in part} for part in (train, held_out))
    assert not of_train & of_held_out and of_train
    assert (len(of_held_out) >= 1) == (share > 0)
    order = [id(example) for example in examples]
    for part in (train, held_out):
        assert [id(example) for example in part] == [i for i in order if i in {id(example) for example in part}]


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=20).filter(lambda numbers: len(set(numbers)) > 1), st.integers(0)
)
def test_the_share_is_one_of_rows_and_not_of_different_rows(numbers: list[int], seed: int) -> None:
    train, held_out = split([Example([i, i], [True, True]) for i in numbers], 0.3, seed)
    smallest = min(Counter(numbers).values())
    expected = round(0.3 * len(numbers))
    assert len(held_out) <= max(expected, smallest)
    trained = Counter(example.token_ids[0] for example in train)
    assert len(trained) == 1 or len(held_out) + min(trained.values()) > expected  # no more of them would have fitted


def test_equal_rows_do_not_move_the_share() -> None:
    examples = [Example([i, i], [True, True]) for i in [*range(40), *[99] * 60]]
    for seed in range(5):
        assert len(split(examples, 0.1, seed)[1]) == 10


def test_another_seed_holds_out_others_and_the_same_the_same() -> None:
    examples = [Example([i, i], [True, True]) for i in range(40)]
    drawn = [tuple(example.token_ids[0] for example in split(examples, 0.2, seed)[1]) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2] and len(drawn[0]) == 8
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(DataError, match="held-out share"):
            split(examples, share, 0)
