"""Every tensor of a merged checkpoint: copied, changed, or new, as an entry of the file in which it will lie."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from ..arrays import Array, widen
from ..config import EMBED, LM_HEAD, ModelConfig, Module, Stacked, module_name, short_name
from ..errors import WeightsError
from ..formats.stream import Entry, pieces
from ..loading.checkpoint import EMBED_WEIGHT, SINGLE, TIED
from ..loading.conversion import all_finite, converted
from ..loading.stacked_experts import by_expert, placed
from ..loading.tensor import Tensor
from .merged_weights import Change, Losses, Rounding, merged_bias, merged_blocks

NORM = "model.norm.weight"


class MergedTensors:
    """The tensors of a base with the changes of adapters in them."""

    def __init__(
        self,
        stored: Sequence[tuple[str, Tensor]],
        text_name: Callable[[str], str | None],
        config: ModelConfig,
        changes: Mapping[Module, Change],
        dtype: str | None,
    ) -> None:
        """stored: name in the file and tensor; text_name: from that name to the one in the text model.

        WeightsError for a change of a module whose weight is in no tensor of its own."""
        self.config, self.changes, self.dtype = config, changes, dtype
        self.losses = Losses()
        self.files: dict[str, list[Entry]] = {}
        self._changed: set[str] = set()  # names in the file; known when all is written
        self._names: dict[str, str] = {}  # here -> in the file
        self._tensors: dict[str, Tensor] = {}  # by the name here; of one in which all experts lie, a view
        parts = [(name, tensor, self._parts(text_name(name), tensor)) for name, tensor in stored]
        for name, _, inside in parts:
            self._names |= dict.fromkeys((here for here, _ in inside), name)
            self._tensors |= dict(inside)
        for module in changes:
            if self._weight(module) is None:
                raise WeightsError(f"{module_name(module)}: its weight is in no tensor of its own, and is not merged")
        targets = {f"{module_name(module)}.{part}": (module, part) for module in config.modules() for part in PARTS}
        for name, tensor, inside in parts:
            places = [targets.get(here) for here, _ in inside]
            stack = placed(text_name(name) or "", config)[2] if config.moe else None
            if stack:
                self._add_stack(name, tensor, [self._change_in_stack(target, name) for target in places], stack)
            else:
                target = places[0] if places else None
                change, part = (changes.get(target[0]), target[1]) if target else (None, "")
                self._add(file_of(tensor), name, tensor, change, part)

    def _change_in_stack(self, target: tuple[Module, str] | None, name: str) -> Change | None:
        """What becomes of one expert's module in a tensor of all. WeightsError for its bias."""
        change = self.changes.get(target[0]) if target else None
        if target is None or change is None or target[1] == "weight":
            return change
        if change.of_bias:
            raise WeightsError(f"{name}: lora_bias of experts is not merged")
        return None

    def _parts(self, text: str | None, tensor: Tensor) -> list[tuple[str, Tensor]]:
        """The name here and the tensor; of one that holds all experts, each module's view, in the order of the memory.

        Nothing of a part that sees images."""
        if text is None:
            return []
        if self.config.moe is None:
            return [(text, tensor)]
        inside = by_expert([(text, tensor)], self.config)
        experts = tensor.shape[0] if placed(text, self.config)[2] else 1
        modules = len(inside) // experts
        return [inside[i * experts + expert] for expert in range(experts) for i in range(modules)]

    @property
    def dtypes(self) -> set[str]:
        """The types that weights are written in: what the config says, if it is one alone."""
        return {entry.dtype for entries in self.files.values() for entry in entries if len(entry.shape) > 1}

    @property
    def changed(self) -> int:
        """How many tensors have other numbers than the base's, or are new: not those to which a sum of 0 is added, or
        less than rounding takes. Known when all is written."""
        return len(self._changed)

    @property
    def nbytes(self) -> int:
        """What all tensors take."""
        return sum(entry.nbytes for entries in self.files.values() for entry in entries)

    def index(self) -> dict[str, dict[str, object]]:
        """What model.safetensors.index.json says."""
        weight_map = {entry.name: file for file, entries in self.files.items() for entry in entries}
        return {"metadata": {"total_size": self.nbytes}, "weight_map": dict(sorted(weight_map.items()))}

    def dtype_of(self, module: Module) -> str:
        """The type in which a module's weight is written."""
        tensor = self._weight(module)
        assert tensor is not None  # or the constructor had refused it
        return self.dtype or tensor.dtype

    def add_missing(self, tied: bool, biased: Iterable[str]) -> None:
        """The second table where the two are no longer tied, and a bias for each of these modules that has none."""
        if self.config.tie_word_embeddings and not tied:
            for module, name in ((EMBED, self._sibling("embed_tokens.weight")), (LM_HEAD, self._head())):
                if f"{module_name(module)}.weight" not in self._names:
                    tensor = self._weight(module)
                    assert tensor is not None
                    self._add(file_of(tensor), name, tensor, self.changes.get(module), "weight")
        for module in self.config.modules():
            if module[1] in biased and f"{module_name(module)}.bias" not in self._names:
                self._add_bias(module)

    def _weight(self, module: Module) -> Tensor | None:
        """The tensor that holds a module's weight; that of the other table where the two are tied."""
        tensor = self._tensors.get(f"{module_name(module)}.weight")
        if tensor is None and module in (EMBED, LM_HEAD) and self.config.tie_word_embeddings:
            return self._tensors.get(TIED if module == EMBED else EMBED_WEIGHT)
        return tensor

    def _sibling(self, name: str) -> str:
        """The name in the file of what lies beside the last norm."""
        return self._names[NORM].removesuffix("norm.weight") + name

    def _head(self) -> str:
        """The name of lm_head.weight in the file: beside `model`, under whatever both are."""
        name = self._names[NORM]
        return name.removesuffix(NORM) + TIED if name == NORM or name.endswith(f".{NORM}") else TIED

    def _add(self, file: str, name: str, tensor: Tensor, change: Change | None, part: str) -> None:
        dtype = self.dtype or tensor.dtype
        if change is not None and part == "weight" and change.of_weight:
            shape = (change.rows(tensor.shape[0]), *tensor.shape[1:])
            self._put(file, Entry(name, shape, dtype, lambda: self._merged(name, tensor.read(), change, dtype)))
        elif change is not None and part == "bias" and change.of_bias:
            stored = tensor.read()
            self._put_bias(file, name, merged_bias(stored, change), dtype, in_type(stored, dtype, name))
        else:
            self._put(file, Entry(name, tensor.shape, dtype, lambda: copied(tensor, dtype)))

    def _add_stack(self, name: str, tensor: Tensor, changes: Sequence[Change | None], stack: Stacked) -> None:
        """A tensor in which modules of all experts lie; their changes one expert after another."""
        dtype = self.dtype or tensor.dtype
        if not any(changes):
            self._put(file_of(tensor), Entry(name, tensor.shape, dtype, lambda: copied(tensor, dtype)))
            return
        axis = 1 if stack.transposed else 0
        places = [stack.rows(number, tensor.shape[1 + axis]) for number in range(len(stack.modules))]

        def experts() -> Iterator[Array]:
            queue = iter(changes)
            for expert in range(tensor.shape[0]):
                stored = tensor.at((expert, slice(None), slice(None)))
                block = np.array(in_type(stored, dtype, name))
                for rows, change in zip(places, itertools.islice(queue, len(places)), strict=True):
                    if change:
                        weight = stored[:, rows].T if axis else stored[rows]
                        merged = np.concatenate(list(self._merged(name, weight, change, dtype)))
                        block[(slice(None), rows) if axis else rows] = merged.T if axis else merged
                yield block

        self._put(file_of(tensor), Entry(name, tensor.shape, dtype, experts))

    def _add_bias(self, module: Module) -> None:
        tensor = self._weight(module)
        assert tensor is not None
        bias = merged_bias(np.zeros(tensor.shape[0]), self.changes.get(module, Change(module)))
        name = self._names[f"{module_name(module)}.weight"].removesuffix("weight") + "bias"
        self._put_bias(file_of(tensor), name, bias, self.dtype or tensor.dtype)

    def _put_bias(self, file: str, name: str, bias: Array, dtype: str, before: Array | None = None) -> None:
        numbers = in_type(bias, dtype, name)
        self._put(file, Entry(name, bias.shape, dtype, lambda: [numbers]))
        if before is None or not np.array_equal(numbers, before):
            self._changed.add(name)

    def _put(self, file: str, entry: Entry) -> None:
        self.files.setdefault(file, []).append(entry)

    def _merged(self, name: str, weight: Array, change: Change, dtype: str) -> Iterator[Array]:
        """The rows of one weight in the type; what rounding takes is noted at the end, and at once that a number is
        not the base's."""
        one, start = Rounding(), 0
        for before, after in merged_blocks(weight, change):
            rows = in_type(after, dtype, short_name(change.module))
            if not np.array_equal(rows, converted(weight[start : start + len(rows)], dtype)):
                self._changed.add(name)
            start += len(rows)
            if change.loras:
                one.lost += float(np.sum((widen(rows, "float64") - after) ** 2))
                one.added += float(np.sum((after - before) ** 2))
            yield rows
        self.losses.note(change.module, one)


PARTS = ("weight", "bias")


def file_of(tensor: Tensor) -> str:
    """The file of a tensor in the merged folder: as in the base's, or the only one of a GGUF."""
    return tensor.file.name if tensor.file.suffix == ".safetensors" else SINGLE


def copied(tensor: Tensor, dtype: str) -> Iterator[Array]:
    """The numbers as they are, or in another type."""
    return (in_type(piece, dtype, tensor.name) for piece in pieces(tensor.read()))


def in_type(x: Array, dtype: str, name: str) -> Array:
    """The numbers in the type, to nearest and ties to even. WeightsError for one that is too large for it."""
    result = converted(x, dtype)
    if result is not x and not all_finite(result):
        raise WeightsError(f"{name} has values too large for {dtype}")
    return result
