"""Text <-> token ids, as the checkpoint's own tokenizer.json does it (the `tokenizers` library)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import LoracleError


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer, or the knowledge that there is none: ids work without, text does not."""

    file: Path  # tokenizer.json, or a GGUF file
    inner: Any = None  # tokenizers.Tokenizer
    reason: str = "is not there: text needs a tokenizer.json"  # why `inner` is None, where it is

    def encode(self, text: str) -> list[int]:
        """The ids of a text, with what the tokenizer's own post-processor adds (usually the BOS token)."""
        return list(self._encoding(text).ids)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a text that holds its special tokens itself, and the characters [start, stop) that each is of."""
        encoding = self._encoding(text, add_special_tokens=False)
        return list(encoding.ids), list(encoding.offsets)

    def decode(self, ids: list[int]) -> str:
        """The text of ids: special tokens left out, nothing stripped. LoracleError for an id that is no int32."""
        inner = self._loaded()
        if any(not 0 <= int(i) < 2**31 for i in ids):
            raise LoracleError(f"decode: ids must be in [0, 2**31), got {min(ids)} to {max(ids)}")
        return str(inner.decode([int(i) for i in ids], skip_special_tokens=True))

    def _encoding(self, text: str, **options: Any) -> Any:
        try:
            return self._loaded().encode(text, **options)
        except TypeError:  # half of a surrogate pair
            raise LoracleError(f"{ascii(text)[:80]} is no text: UTF-8 has no bytes for it") from None

    def _loaded(self) -> Any:
        if self.inner is None:
            raise LoracleError(f"{self.file} {self.reason}; give token ids instead")
        return self.inner
