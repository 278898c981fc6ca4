"""The vocabulary in a GGUF file -> a Tokenizer, as the model's own tokenizer.json would be.

    tokenizer.ggml.model         llama: SentencePiece, merged by score;  gpt2: byte-level BPE, merged by rank
    tokenizer.ggml.tokens        the text of each id
    tokenizer.ggml.scores        of each id (llama);  merges: pairs, the first ones first (gpt2)
    tokenizer.ggml.token_type    of each id: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
    tokenizer.ggml.pre           how text is cut into words before it is merged (gpt2), by a name
    tokenizer.ggml.add_bos_token, add_space_prefix

(src/llama-vocab.cpp.) A name in `pre` stands for a regular expression, which is in no file: those of WORDS are known.
For others, a tokenizer.json beside the file is used (tokenizer_file.py).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..tokenizer import Tokenizer
from .diagnostics import Diagnostics, one_line, shown
from .gguf_config import vocabulary
from .gguf_parts import open_gguf

CONTROL, USER_DEFINED = 3, 4
SPACE = "▁"
ADVICE = "put the tokenizer.json of its model beside it"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
DIGIT = r"\p{N}"
# tokenizer.ggml.pre -> the expressions that cut text, one after the other (llm_tokenizer_bpe in llama-vocab.cpp).
WORDS = {
    "gpt-2": (GPT2,),
    "llama-bpe": (LLAMA3,),
    "llama3": (LLAMA3,),
    "llama-v3": (LLAMA3,),
    "smaug-bpe": (LLAMA3,),
    "smollm": (DIGIT, GPT2),
    "starcoder": (DIGIT, GPT2),
    "refact": (DIGIT, GPT2),
    "qwen2": (LLAMA3.replace("{1,3}", ""),),
}
# Of these, a word that is a token is not merged, and texts begin with BOS unless the file says otherwise.
IGNORE_MERGES = ("llama-bpe", "llama3", "llama-v3")


def gguf_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a GGUF file, or one that says why it is none. ConfigError if what it has for one is damaged."""
    diagnostics = Diagnostics()
    file = open_gguf(path, diagnostics)
    diagnostics.raise_first(ConfigError, path)
    assert file is not None  # None comes with a problem
    given = {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in file.metadata.items()
        if key.startswith("tokenizer.ggml.")
    }
    tokens, kind, words = vocabulary(file), given.get("model"), given.get("pre", "default")
    if not tokens:
        return Tokenizer(path, reason=f"has no vocabulary: {ADVICE}")
    if not all(isinstance(token, str) for token in tokens) or len(set(tokens)) < len(tokens):
        raise ConfigError(f"{path}: tokenizer.ggml.tokens must be texts, each of them once")
    build = {"llama": sentencepiece, "gpt2": byte_level}.get(kind) if isinstance(kind, str) else None
    if build is None:
        return Tokenizer(path, reason=f"has a tokenizer.ggml.model {shown(kind)}, which is not supported: {ADVICE}")
    if kind == "gpt2" and words not in WORDS:
        return Tokenizer(path, reason=f"has a tokenizer.ggml.pre {shown(words)}, which is not supported: {ADVICE}")
    return Tokenizer(path, built(path, tokens, given, build))


def built(path: Path, tokens: list[str], given: Mapping[str, Any], build: Callable[..., Any]) -> Any:
    """A tokenizers.Tokenizer with its special tokens, and with BOS in front where the file wants that."""
    from tokenizers import AddedToken, processors

    types = column(path, given, "token_type", len(tokens), 1)
    try:
        inner = build(path, tokens, given)
        for token, kind in zip(tokens, types, strict=True):
            if kind in (CONTROL, USER_DEFINED):
                added = AddedToken(token, special=kind == CONTROL, normalized=False)
                (inner.add_special_tokens if kind == CONTROL else inner.add_tokens)([added])
    except ConfigError:
        raise
    except Exception as error:  # the library raises bare Exception for anything that it does not like
        raise ConfigError(
            one_line(f"{path}: the tokenizers library does not accept its vocabulary ({error})")
        ) from None
    bos = given.get("bos_token_id", 1 if given.get("model") == "llama" else None)
    begins = given.get("add_bos_token", given.get("model") == "llama" or given.get("pre") in IGNORE_MERGES)
    if begins and isinstance(bos, int) and 0 <= bos < len(tokens):
        inner.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]}:0 $A:0", pair=None, special_tokens=[(tokens[bos], bos)]
        )
    return inner


def byte_level(path: Path, tokens: list[str], given: Mapping[str, Any]) -> Any:
    """Byte-level BPE (GPT-2): each byte is a printable letter, and pairs are merged in the order of the list."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    words = given.get("pre", "default")
    merges = given.get("merges")
    if not isinstance(merges, list) or not all(isinstance(merge, str) and " " in merge[1:] for merge in merges):
        raise ConfigError(f"{path}: tokenizer.ggml.merges must be pairs of tokens, with a space between them")
    pairs = [(merge[: (cut := merge.index(" ", 1))], merge[cut + 1 :]) for merge in merges]
    ids = {token: i for i, token in enumerate(tokens)}
    inner = Tokenizer(models.BPE(ids, pairs, ignore_merges=words in IGNORE_MERGES))
    cuts = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in WORDS[words]]
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    inner.decoder = decoders.ByteLevel()
    return inner


def sentencepiece(path: Path, tokens: list[str], given: Mapping[str, Any]) -> Any:
    """SentencePiece BPE: the pair that makes the token with the best score is merged first; bytes stand for the rest.

    Whoever makes a token of two others by such a merge has a rank here, as in transformers' tokenizer.json."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = column(path, given, "scores", len(tokens), 0.0)
    ids = {token: i for i, token in enumerate(tokens)}
    pairs = [
        (-scores[i], ids[token[:cut]], ids[token[cut:]])
        for i, token in enumerate(tokens)
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
    merges = [(tokens[first], tokens[second]) for _, first, second in sorted(pairs)]
    unknown = given.get("unknown_token_id", 0)
    unknown = tokens[unknown] if isinstance(unknown, int) and 0 <= unknown < len(tokens) else None
    inner = Tokenizer(models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = given.get("add_space_prefix", True)
    inner.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend(SPACE)] if prefix else []), normalizers.Replace(" ", SPACE)]
    )
    plain = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*plain, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    return inner


def column(path: Path, given: Mapping[str, Any], key: str, count: int, default: float) -> list[Any]:
    """One number for each token. ConfigError if the file has another number of them."""
    values = given.get(key, [default] * count)
    if not isinstance(values, list) or len(values) != count or not all(isinstance(n, (int, float)) for n in values):
        raise ConfigError(f"{path}: tokenizer.ggml.{key} must be {count} numbers, one for each token")
    return values
