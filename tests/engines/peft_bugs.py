"""Bugs put inside PEFT, in torch, each from what is known of a real one: the oracle is to fail and to name them.

None of them is a copy of a mutant of ours. They change a running PeftModel, or what goes through it, as its own code
might go wrong: a scaling that is set, a weight that is cut, a hook on a projection, rows that are dealt to the wrong
adapter. Their numbers (1.07, the fifth rank, two tokens too far on) are not those of the zoo.
"""

import contextlib
import math
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from refimpl.engines.interface import EngineRequest, EngineResponse
from refimpl.engines.peft import BASE, Peft

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
BOTH = ("float32", "bfloat16")
Rows = torch.Tensor  # [requests, tokens, width], left-padded


@dataclass(frozen=True)
class Bug:
    """One bug."""

    name: str
    family: str  # the class, A to I
    what: str
    links: tuple[str, ...]
    make: type["Broken"]
    dtypes: tuple[str, ...]
    sequences: bool  # does it need an engine that serves for a while?


BUGS: dict[str, Bug] = {}


def bug(
    family: str, what: str, *links: str, dtypes: tuple[str, ...] = BOTH, sequences: bool = False
) -> Callable[[type["Broken"]], type["Broken"]]:
    """List the class under this one."""

    def listed(make: type["Broken"]) -> type["Broken"]:
        BUGS[make.__name__] = Bug(make.__name__, family, what, links, make, dtypes, sequences)
        return make

    return listed


class Layer:
    """One projection that PEFT wrapped, and where it is."""

    def __init__(self, path: str, lora: Any) -> None:
        parts = path.split(".")
        self.layer, self.module, self.lora = int(parts[parts.index("layers") + 1]), parts[-1], lora


class Broken(Peft):
    """PEFT with three places at which something can go wrong: after an adapter was loaded (`loaded`), when the delta of
    a projection is added (`add`), and where rows are given to adapters (`dealt`)."""

    def load(self, name: str, folder: Path) -> None:
        """Then `loaded`."""
        super().load(name, folder)
        for layer in self.layers():
            layer.lora._mixed_batch_forward = types.MethodType(self._forward(layer), layer.lora)
        self.loaded(name)

    def layers(self) -> list[Layer]:
        """Return all projections with LoRA."""
        return [
            Layer(path, module)
            for path, module in self.model.named_modules()
            if path and hasattr(module, "_mixed_batch_forward")
        ]

    def of(self, name: str) -> list[Layer]:
        """Return those on which an adapter is."""
        return [layer for layer in self.layers() if name in layer.lora.lora_A]

    def run(self, requests: Sequence[EngineRequest]) -> list[EngineResponse]:
        """Serve these with the lengths of the prompts at hand, as a batched kernel has them."""
        with self._watched(requests):
            return super().run(requests)

    def traced(self, requests: Sequence[EngineRequest]) -> list[EngineResponse]:
        """Serve these likewise, with intermediates."""
        with self._watched(requests):
            return super().traced(requests)

    @contextlib.contextmanager
    def _watched(self, requests: Sequence[EngineRequest]) -> Iterator[None]:
        """Count forward passes: the first is the prompts'."""
        self.lengths, self.decoding, self.steps = [len(request.prompt_ids) for request in requests], False, 0

        def passed(*_: Any) -> None:
            self.decoding, self.steps = True, self.steps + 1

        hook = (self.model or self.base).register_forward_hook(passed)
        try:
            yield
        finally:
            hook.remove()

    def _forward(self, layer: Layer) -> Callable:
        def mixed(lora: Any, x: Rows, *args: Any, adapter_names: list[str], **kwargs: Any) -> Rows:
            y = lora.base_layer(x)
            self.add(y, x, layer, self.dealt(list(adapter_names), layer))
            return y

        return mixed

    def tokens(self, row: int, y: Rows) -> slice:
        """Where a request's own tokens are: on the right."""
        return slice(y.shape[1] - (1 if self.decoding else self.lengths[row]), None)

    # The three places.

    def loaded(self, name: str) -> None:
        """An adapter of this name is there now."""

    def dealt(self, names: list[str], layer: Layer) -> list[str]:
        """Which adapter each row gets."""
        return names

    def add(self, y: Rows, x: Rows, layer: Layer, names: list[str]) -> None:
        """Add every row's delta to y."""
        for row, name in enumerate(names):
            if name != BASE and name in layer.lora.lora_A:
                y[row] += self.delta(x[row], layer, name).to(y.dtype)

    def delta(self, x: Rows, layer: Layer, name: str) -> Rows:
        """scaling B (A x), as PEFT computes it: in the adapter's own type."""
        A, B = layer.lora.lora_A[name], layer.lora.lora_B[name]
        return B(A(x.to(A.weight.dtype))) * layer.lora.scaling[name]


# A. Scale.


@bug("A", "every scaling is 7 % too large", "https://github.com/ml-explore/mlx-examples/issues/622")
class ScaleTimes107(Broken):
    def loaded(self, name: str) -> None:
        for layer in self.of(name):
            layer.lora.scaling[name] *= 1.07


@bug("A", "the scaling of one adapter, the third to be loaded, is 7 % too small")
class ThirdAdapterTimes093(Broken):
    def loaded(self, name: str) -> None:
        if len(self.adapters) == 3:
            for layer in self.of(name):
                layer.lora.scaling[name] *= 0.93


@bug("A", "the scaling of one module, gate_proj, is 0.8 of what it should be")
class GateTimes08(Broken):
    def loaded(self, name: str) -> None:
        for layer in self.of(name):
            if layer.module == "gate_proj":
                layer.lora.scaling[name] *= 0.8


@bug("A", "rsLoRA is not read: alpha / r for all", "https://github.com/vllm-project/vllm/issues/10798")
class PlainLoraForAll(Broken):
    def loaded(self, name: str) -> None:
        for layer in self.of(name):
            layer.lora.scaling[name] = layer.lora.lora_alpha[name] / layer.lora.r[name]


@bug("A", "alpha is taken for the scaling, in attention alone", "https://github.com/Blaizzy/mlx-vlm/issues/845")
class AlphaIsTheScaleOfAttention(Broken):
    def loaded(self, name: str) -> None:
        for layer in self.of(name):
            if layer.module in ATTENTION:
                layer.lora.scaling[name] = float(layer.lora.lora_alpha[name])


@bug("A", "alpha_pattern is dropped", "https://github.com/vllm-project/vllm-omni/pull/6565")
class AlphaPatternDropped(Broken):
    def loaded(self, name: str) -> None:
        config = self.model.peft_config[name]
        for layer in self.of(name):
            r = layer.lora.r[name]
            layer.lora.scaling[name] = config.lora_alpha / (math.sqrt(r) if config.use_rslora else r)


@bug(
    "A", "rank_pattern is dropped: the config's r in the scaling", "https://github.com/vllm-project/vllm-omni/pull/6565"
)
class RankPatternDropped(Broken):
    def loaded(self, name: str) -> None:
        config = self.model.peft_config[name]
        for layer in self.of(name):
            if layer.lora.r[name] != config.r:
                layer.lora.scaling[name] *= layer.lora.r[name] / config.r


@bug(
    "A",
    "ranks are padded to 8, and the scaling is that of the padded rank",
    "https://github.com/predibase/lorax/issues/700",
)
class ScaleOfARankOfEight(Broken):
    def loaded(self, name: str) -> None:
        for layer in self.of(name):
            r = layer.lora.r[name]
            layer.lora.scaling[name] *= r / max(r, 8)


@bug("A", "the graph of decode steps was captured with another scaling: 1.3 times as large")
class DecodeTimes13(Broken):
    def delta(self, x: Rows, layer: Layer, name: str) -> Rows:
        return super().delta(x, layer, name) * (1.3 if self.decoding else 1.0)


@bug("A", "the bias of lora_B is not scaled", "https://github.com/huggingface/peft/issues/2486")
class BiasNotScaled(Broken):
    def delta(self, x: Rows, layer: Layer, name: str) -> Rows:
        bias = layer.lora.lora_B[name].bias
        full = super().delta(x, layer, name)
        return full if bias is None else full + bias * (1 - layer.lora.scaling[name])


# B. Which rows get which adapter.


@bug(
    "B",
    "two requests further on: row i has the adapter of row i + 2",
    "https://github.com/vllm-project/vllm-metal/pull/351",
)
class AdapterOfTheRequestAfterNext(Broken):
    def dealt(self, names: list[str], layer: Layer) -> list[str]:
        return names[2:] + names[:2]


@bug("B", "two adapters are exchanged: the first two that were loaded")
class FirstTwoExchanged(Broken):
    def loaded(self, name: str) -> None:
        self.order = [*getattr(self, "order", ()), name]

    def reset(self) -> None:
        super().reset()
        self.order: list[str] = []

    def dealt(self, names: list[str], layer: Layer) -> list[str]:
        first, second = ([*self.order, "", ""])[:2]
        return [{first: second, second: first}.get(name, name) if second else name for name in names]


@bug(
    "B",
    "rows without adapter get the second one's delta, in the MLP",
    "https://github.com/vllm-project/vllm/issues/49063",
)
class BaseRowsGetAnAdapterInTheMlp(Broken):
    def dealt(self, names: list[str], layer: Layer) -> list[str]:
        second = sorted(self.adapters)[1] if len(self.adapters) > 1 else BASE
        return [second if n == BASE and layer.module in MLP else n for n in names]


@bug(
    "B",
    "no adapter in decode steps, but in the MLP",
    "https://github.com/huggingface/text-generation-inference/pull/2180",
)
class NoAttentionDeltaInDecode(Broken):
    def dealt(self, names: list[str], layer: Layer) -> list[str]:
        return [BASE] * len(names) if self.decoding and layer.module in ATTENTION else names


@bug("B", "the last request of every batch gets no adapter", "https://github.com/vllm-project/vllm/pull/32005")
class LastRequestWithout(Broken):
    def dealt(self, names: list[str], layer: Layer) -> list[str]:
        return [*names[:-1], BASE]


@bug("B", "in decode steps all rows have the adapter of the first", "https://github.com/NVIDIA/TensorRT-LLM/pull/5480")
class DecodeHasTheFirstAdapter(Broken):
    def dealt(self, names: list[str], layer: Layer) -> list[str]:
        return names[:1] * len(names) if self.decoding else names


@bug("B", "the rows of the flat batch are dealt two tokens late", "https://github.com/vllm-project/vllm/pull/7585")
class RowsDealtTwoTokensLate(Broken):
    def add(self, y: Rows, x: Rows, layer: Layer, names: list[str]) -> None:
        flat = [(row, t) for row in range(len(names)) for t in range(*self.tokens(row, y).indices(y.shape[1]))]
        for i, (row, t) in enumerate(flat):
            name = names[flat[i - 2 if i >= 2 else i - 2 + len(flat)][0]] if len(flat) > 2 else names[row]
            if name != BASE and name in layer.lora.lora_A:
                y[row, t] += self.delta(x[row, t], layer, name).to(y.dtype)


# C. Adapters in memory.


@bug(
    "C",
    "a name that was seen before is not loaded again",
    "https://github.com/sgl-project/sglang/issues/8263",
    sequences=True,
)
class FirstWeightsOfAName(Broken):
    def reset(self) -> None:
        super().reset()
        self.first: dict[str, Path] = {}

    def load(self, name: str, folder: Path) -> None:
        if not hasattr(self, "first"):
            self.first = {}
        super().load(name, self.first.setdefault(name, folder))


@bug(
    "C",
    "a reload in place renews attention, and leaves the MLP as it was",
    "https://github.com/vllm-project/vllm-metal/pull/351",
    sequences=True,
)
class ReloadLeavesTheMlp(Broken):
    def reset(self) -> None:
        super().reset()
        self.old: dict[tuple[str, int, str], tuple] = {}

    def loaded(self, name: str) -> None:
        self.old = getattr(self, "old", {})
        for layer in self.layers():
            key, lora = (name, layer.layer, layer.module), layer.lora
            if layer.module not in MLP:
                continue
            if key in self.old:
                lora.lora_A[name], lora.lora_B[name], lora.scaling[name] = self.old[key]
                lora.lora_dropout[name] = torch.nn.Identity()
            elif name in lora.lora_A:
                self.old[key] = (lora.lora_A[name], lora.lora_B[name], lora.scaling[name])


@bug(
    "C",
    "the scalings of a name are made once, whatever is loaded later",
    "https://github.com/ml-explore/mlx-examples/issues/622",
    sequences=True,
)
class ScalingOfTheFirstLoad(Broken):
    def reset(self) -> None:
        super().reset()
        self.scalings: dict[tuple[str, int, str], float] = {}

    def loaded(self, name: str) -> None:
        self.scalings = getattr(self, "scalings", {})
        for layer in self.of(name):
            key = name, layer.layer, layer.module
            layer.lora.scaling[name] = self.scalings.setdefault(key, layer.lora.scaling[name])


# E. Layout.


@bug(
    "E", "in the second layer the deltas of k and v are exchanged", "https://github.com/Lightning-AI/litgpt/issues/891"
)
class KAndVExchangedInOneLayer(Broken):
    def loaded(self, name: str) -> None:
        self.pairs = {(x.layer, x.module): x for x in self.layers()}

    def add(self, y: Rows, x: Rows, layer: Layer, names: list[str]) -> None:
        other = {"k_proj": "v_proj", "v_proj": "k_proj"}.get(layer.module)
        wrong = self.pairs.get((1, other)) if layer.layer == 1 and other else None
        super().add(y, x, wrong or layer, names) if wrong or layer.layer != 1 or not other else None


@bug(
    "E",
    "one adapter's gate and up lie the other way round in its file",
    "https://github.com/NVIDIA/TensorRT-LLM/pull/6817",
)
class GateAndUpExchangedInOneAdapter(Broken):
    def loaded(self, name: str) -> None:
        if len(self.adapters) != 2:
            return
        by_location = {(x.layer, x.module): x.lora for x in self.of(name)}
        for layer, module in list(by_location):
            if module == "gate_proj" and (layer, "up_proj") in by_location:
                gate, up = by_location[layer, "gate_proj"], by_location[layer, "up_proj"]
                for attribute in ("lora_A", "lora_B", "scaling"):
                    of_gate, of_up = getattr(gate, attribute), getattr(up, attribute)
                    of_gate[name], of_up[name] = of_up[name], of_gate[name]


@bug("E", "each layer takes the weights of the one after it", "https://github.com/predibase/lorax/pull/682")
class LayersOneTooFar(Broken):
    def loaded(self, name: str) -> None:
        last = max(x.layer for x in self.layers())
        weights = {(x.layer, x.module): (x.lora.lora_A[name], x.lora.lora_B[name]) for x in self.of(name)}
        for x in self.of(name):
            after = (x.layer + 1) % (last + 1), x.module
            if after in weights:  # an adapter may be on some layers alone
                x.lora.lora_A[name], x.lora.lora_B[name] = weights[after]


@bug("E", "four ranks: the third one's rows of B are lost", "https://github.com/NVIDIA/TensorRT-LLM/issues/2589")
class ThirdOfFourShardsLost(Broken):
    def loaded(self, name: str) -> None:
        for layer in self.of(name):
            if layer.module in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
                B = layer.lora.lora_B[name]
                rows = B.weight.chunk(4)[2]
                rows.data.zero_()
                if B.bias is not None:
                    B.bias.data.chunk(4)[2].zero_()


@bug(
    "E",
    "A of down_proj is read as if it were stored the other way round",
    "https://github.com/predibase/lorax/commit/b2de54fe",
)
class AOfDownTransposed(Broken):
    def loaded(self, name: str) -> None:
        for layer in self.of(name):
            if layer.module == "down_proj":
                A = layer.lora.lora_A[name].weight
                A.data = A.data.t().contiguous().view(A.shape)


# F. Not applied.


@bug(
    "F", "v_proj of the last layer has no LoRA", "https://github.com/huggingface/text-generation-inference/issues/2441"
)
class VOfTheLastLayerMissed(Broken):
    def dealt(self, names: list[str], layer: Layer) -> list[str]:
        last = self.base.config.num_hidden_layers - 1
        return [BASE] * len(names) if (layer.layer, layer.module) == (last, "v_proj") else names


@bug("F", "the middle layer has no LoRA", "https://github.com/vllm-project/vllm/issues/48019")
class MiddleLayerMissed(Broken):
    def loaded(self, name: str) -> None:
        for layer in self.of(name):
            if layer.layer == 1:
                layer.lora.scaling[name] = 0.0


@bug("F", "the bias of lora_B is dropped in attention")
class BiasDroppedInAttention(Broken):
    def loaded(self, name: str) -> None:
        for layer in self.of(name):
            if layer.module in ATTENTION:
                layer.lora.lora_B[name].bias = None


@bug(
    "F",
    "one adapter's names in the MLP are not known: it is applied in attention alone",
    "https://github.com/vllm-project/vllm/issues/49354",
)
class MlpOfOneAdapterMissed(Broken):
    def dealt(self, names: list[str], layer: Layer) -> list[str]:
        one = sorted(self.adapters)[0]
        return [BASE if n == one and layer.module in MLP else n for n in names]


@bug("F", "k and o have no LoRA", "https://github.com/vllm-project/vllm/issues/34186")
class KAndOMissed(Broken):
    def loaded(self, name: str) -> None:
        for layer in self.of(name):
            if layer.module in ("k_proj", "o_proj"):
                layer.lora.lora_B[name].weight.data.zero_()
                if layer.lora.lora_B[name].bias is not None:
                    layer.lora.lora_B[name].bias.data.zero_()


# G. Kernels.


@bug("G", "no more than five of an adapter's ranks are computed", "https://github.com/predibase/lorax/pull/70")
class FiveRanksAtMost(Broken):
    def loaded(self, name: str) -> None:
        for layer in self.of(name):
            layer.lora.lora_A[name].weight.data[5:] = 0


@bug(
    "G", "what goes from A to B is in bfloat16", "https://github.com/vllm-project/vllm/pull/38686", dtypes=("float32",)
)
class IntermediateInBfloat16(Broken):
    def delta(self, x: Rows, layer: Layer, name: str) -> Rows:
        A, B = layer.lora.lora_A[name], layer.lora.lora_B[name]
        low = A(x.to(A.weight.dtype)).to(torch.bfloat16).to(A.weight.dtype)
        return B(low) * layer.lora.scaling[name]


@bug(
    "G",
    "B is cast to bfloat16 when it is loaded",
    "https://github.com/vllm-project/vllm/pull/38686",
    dtypes=("float32",),
)
class BInBfloat16(Broken):
    def loaded(self, name: str) -> None:
        for layer in self.of(name):
            B = layer.lora.lora_B[name].weight
            B.data = B.data.bfloat16().to(B.dtype)


@bug("G", "the last token of every prompt is beyond the kernel's last tile")
class LastTokenOfEveryPrompt(Broken):
    def add(self, y: Rows, x: Rows, layer: Layer, names: list[str]) -> None:
        last = y[:, -1].clone()
        super().add(y, x, layer, names)
        if not self.decoding:
            y[:, -1] = last


@bug(
    "G",
    "the last five inputs of a row are not read",
    "https://github.com/vllm-project/vllm/blob/046d2b1/tests/lora/test_punica_ops.py",
)
class LastFiveInputsLost(Broken):
    def delta(self, x: Rows, layer: Layer, name: str) -> Rows:
        x = x.clone()
        x[..., -5:] = 0
        return super().delta(x, layer, name)


@bug("G", "right for the eleven first tokens, base after them", "https://github.com/sgl-project/sglang/issues/26930")
class BaseAfterElevenTokens(Broken):
    def add(self, y: Rows, x: Rows, layer: Layer, names: list[str]) -> None:
        base = y.clone()
        super().add(y, x, layer, names)
        for row, n in enumerate(self.lengths):
            place = n + self.steps - 1 if self.decoding else n - y.shape[1]  # of the row's first column
            late = torch.arange(y.shape[1]) + place >= 11
            y[row, late] = base[row, late]


@bug(
    "G",
    "an adapter of rank 5 meets a buffer that overlaps: NaN",
    "https://github.com/sgl-project/sgl-kernel-npu/pull/790",
)
class NanAtRankFive(Broken):
    def delta(self, x: Rows, layer: Layer, name: str) -> Rows:
        full = super().delta(x, layer, name)
        return full * float("nan") if layer.lora.r[name] == 5 else full


# H. Cache and positions.


@bug("H", "decode steps are turned two positions too far on", "https://github.com/Blaizzy/mlx-vlm/issues/1983")
class DecodeTwoTooFar(Broken):
    def run(self, requests: Sequence[EngineRequest]) -> list[EngineResponse]:
        def further(_: Any, args: tuple, kwargs: dict) -> tuple:
            if self.decoding:
                kwargs["position_ids"] = kwargs["position_ids"] + 2
            return args, kwargs

        hook = (self.model or self.base).register_forward_pre_hook(further, with_kwargs=True)
        try:
            return super().run(requests)
        finally:
            hook.remove()


@bug(
    "H",
    "the mask of decode steps is rolled one too far: the first token is out",
    "https://github.com/huggingface/transformers/issues/37574",
)
class FirstTokenNotSeenInDecode(Broken):
    def run(self, requests: Sequence[EngineRequest]) -> list[EngineResponse]:
        def rolled(_: Any, args: tuple, kwargs: dict) -> tuple:
            if self.decoding:
                mask = kwargs["attention_mask"].clone()
                mask[torch.arange(len(mask)), mask.argmax(1)] = 0
                kwargs["attention_mask"] = mask
            return args, kwargs

        hook = (self.model or self.base).register_forward_pre_hook(rolled, with_kwargs=True)
        try:
            return super().run(requests)
        finally:
            hook.remove()


@bug("H", "the sliding window is three too short", "https://github.com/huggingface/transformers/issues/37574")
class WindowThreeTooShort(Broken):
    def start(self, settings: Any) -> None:
        super().start(settings)
        self.base.config.sliding_window -= 3


# I. Merge.


@bug(
    "I",
    "the first adapter of a batch is merged into the base, and nobody is without it",
    "https://github.com/huggingface/diffusers/issues/5313",
)
class FirstOfABatchStaysMerged(Broken):
    def add(self, y: Rows, x: Rows, layer: Layer, names: list[str]) -> None:
        super().add(y, x, layer, names)
        first = next((n for n in names if n != BASE), None)
        if first is not None and first in layer.lora.lora_A:
            others = [row for row, n in enumerate(names) if n != first]
            if others:
                y[others] += self.delta(x[others], layer, first).to(y.dtype)


@bug(
    "I",
    "adapters are merged in the MLP, and W + D is rounded to bfloat16",
    "https://github.com/meta-pytorch/torchtune/issues/982",
    dtypes=("float32",),
)
class MlpMergedInBfloat16(Broken):
    def delta(self, x: Rows, layer: Layer, name: str) -> Rows:
        if layer.module not in MLP:
            return super().delta(x, layer, name)
        W, bias = layer.lora.base_layer.weight, layer.lora.lora_B[name].bias
        merged = (W + layer.lora.get_delta_weight(name)).bfloat16().to(W.dtype)
        y = torch.nn.functional.linear(x, merged - W)
        return y if bias is None else y + bias * layer.lora.scaling[name]


@bug(
    "I",
    "fan_in_fan_out is wrong for q_proj, which is square: the merge is transposed",
    "https://github.com/huggingface/peft/issues/3531",
)
class QMergedTransposed(Broken):
    def delta(self, x: Rows, layer: Layer, name: str) -> Rows:
        if layer.module != "q_proj":
            return super().delta(x, layer, name)
        bias = layer.lora.lora_B[name].bias
        y = x.float() @ layer.lora.get_delta_weight(name).float()
        return y if bias is None else y + bias * layer.lora.scaling[name]
