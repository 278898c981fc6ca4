"""Whose tokenizer and whose chat template make ids of a prompt, and what is said where that matters."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from loading.folders import write_adapter, write_model
from loading.wild_cases import grown

from refimpl import cli
from refimpl.commands.texts import Texts
from refimpl.loading.model_folder import load_model

WORDS = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(3, 13))]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %} [{{ message['role'] }}] {{ message['content'] }}{% endfor %} w12"
)


def tokenizer(words: Sequence[str] = WORDS, added: Sequence[str] = (), bos: bool = False, **more: Any) -> str:
    """A tokenizer.json of whole words; added tokens have the ids after them."""
    tokens = [
        {"id": len(words) + i, "content": word, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False, "special": True}
        for i, word in enumerate(added)
    ]
    begin = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    }
    begin |= {"pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}
    return json.dumps(
        {"version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens, "normalizer": None}
        | {"pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": begin if bos else None, "decoder": None}
        | {"model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "<unk>"}}
        | more
    )


def folders(root: Path, of_base: str = "", of_adapter: str = "", **more: str) -> Path:
    """A base and an adapter of a grown vocabulary, with these tokenizers; more: other files of the adapter."""
    write_model(root / "model")
    write_adapter(root / "adapter", grown(), modules_to_save=["embed_tokens", "lm_head"])
    (root / "model" / "tokenizer.json").write_text(of_base or tokenizer())
    if of_adapter:
        (root / "adapter" / "tokenizer.json").write_text(of_adapter)
    for name, content in more.items():
        (root / "adapter" / name.replace("__", ".")).write_text(content)
    return root


def encoded(root: Path, row: dict[str, Any] | str, chat: bool = False) -> tuple[list[int], list[str]]:
    """The ids of a prompt for the adapter, and what was warned of."""
    texts = Texts(load_model(root / "model"), chat)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, ids = texts.ids({"prompt": row} if isinstance(row, str) else row, {"a": root / "adapter"})
    return list(ids), [str(warning.message) for warning in caught]


def test_tokens_that_the_adapter_has_added(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folders(tmp_path, of_adapter=tokenizer(added=["<tool>", "<call>"]))
    ids, said = encoded(root, "w5 <tool> w6")
    assert ids == [5, 13, 6]
    assert said == ["a: texts go through the adapter's own tokenizer.json, which adds 2 tokens, as '<tool>' (13)"]
    argv = ["generate", "--model", str(root / "model"), "--adapter", f"a={root / 'adapter'}", "--json"]
    assert cli.main([*argv, "--prompt", "a:w5 <tool> w6", "--prompt", "base:w5", "--max-new-tokens", "6"]) == 0
    out, errors = capsys.readouterr()
    assert errors.count("own tokenizer.json") == 1
    first, second = json.loads(out)["texts"]
    assert first["text"].split() == [WORDS[i] for i in first["token_ids"] if i < 13 and i != 2]
    assert second["text"].split() == [WORDS[i] for i in second["token_ids"] if i != 2]


def test_tokens_with_other_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    swapped = [*WORDS[:5], WORDS[6], WORDS[5], *WORDS[7:]]
    root = folders(tmp_path, of_adapter=tokenizer(swapped))
    ids, said = encoded(root, "w5 w6")
    assert ids == [6, 5] and "gives other ids to 2 tokens, as 'w6'" in said[0]
    assert cli.main(["inspect", str(root / "adapter"), "--model", str(root / "model"), "--json"]) == 0
    assert any("gives other ids to 2 tokens" in text for text in json.loads(capsys.readouterr().out)["warnings"])


def test_the_same_tokenizer_is_not_remarkable(tmp_path: Path) -> None:
    truncated = {"truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}}
    root = folders(tmp_path, of_adapter=tokenizer(**truncated))
    assert encoded(root, "w5 w6 w7 w8") == ([5, 6, 7, 8], [])
    assert encoded(folders(tmp_path / "none"), "w5 w6") == ([5, 6], [])


def test_two_adapters_with_tokenizers_of_their_own(tmp_path: Path) -> None:
    root = folders(tmp_path, of_adapter=tokenizer(added=["<tool>"]))
    other = folders(tmp_path / "other", of_adapter=tokenizer(added=["<call>"]))
    texts = Texts(load_model(root / "model"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert texts.tokenizer({"a": root / "adapter", "b": other / "adapter"}) is texts.model.tokenizer
    assert "a and b have tokenizers of their own that differ" in str(caught[-1].message)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = texts.tokenizer({"a": root / "adapter", "base": root})
    assert alone.encode("<tool>") == [13]


def test_added_tokens_without_a_tokenizer(tmp_path: Path) -> None:
    root = folders(tmp_path, added_tokens__json=json.dumps({"<tool>": 13, "<pad>": 14}))
    assert encoded(root, "w5") == (
        [5],
        ["a: added_tokens.json adds ['<tool>'], which the base's tokenizer does not know, and has no tokenizer.json: "
         "a text with them is cut otherwise than in training"],
    )  # fmt: skip


def test_the_adapters_own_chat_template(tmp_path: Path) -> None:
    words = [*WORDS[:11], "[user]", "w12"]
    both = tokenizer(words)
    config = json.dumps({"chat_template": TEMPLATE, "bos_token": "<s>"})
    root = folders(tmp_path, both, both, tokenizer_config__json=config)
    assert encoded(root, "w5", chat=True) == ([1, 11, 5, 12], [])
    assert encoded(root, {"messages": [{"role": "user", "content": "w5 w6"}]}) == ([1, 11, 5, 6, 12], [])
    assert encoded(root, "w5") == (
        [5],
        ["a has a chat template, and its prompt is given to it as it is: --chat puts it in"],
    )
    assert encoded(root, "<s> [user] w5 w12") == ([1, 11, 5, 12], [])
    (root / "model" / "chat_template.jinja").write_text("w7{{ messages[0]['content'] }}")
    (root / "adapter" / "tokenizer_config.json").unlink()
    assert encoded(root, " w5", chat=True) == ([7, 5], [])


def test_a_beginning_that_is_there_twice(tmp_path: Path) -> None:
    root = folders(tmp_path, tokenizer(bos=True))
    assert encoded(root, "w5") == ([1, 5], [])
    ids, said = encoded(root, "<s> w5")
    assert ids == [1, 1, 5] and said == [
        "a prompt begins with BOS twice (1 1): the text has it, and the tokenizer adds it"
    ]


def test_chat_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folders(tmp_path)
    argv = ["generate", "--model", str(root / "model"), "--prompt", "base:w5", "--max-new-tokens", "1", "--json"]
    assert cli.main([*argv, "--chat"]) == 2
    assert "messages need a chat template" in capsys.readouterr().err
    (root / "model" / "chat_template.jinja").write_text("w7 {{ messages[0]['content'] }}")
    assert cli.main([*argv, "--chat"]) == 0
    assert json.loads(capsys.readouterr().out)["texts"][0]["prompt"] == "w7 w5"
