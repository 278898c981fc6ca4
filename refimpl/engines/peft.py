"""transformers + PEFT, in this process: a mixed batch with adapter_names=[...], left-padded, decoded with its cache.

What most people mean by "the right answer". Eager attention; adapters as PEFT holds them, in float32.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Array
from ..config import LAYER_MODULES
from .interface import Capabilities, EngineError, EngineRequest, EngineResponse, Entry, Settings

BASE = "__base__"  # what PEFT calls a row without adapter
PACKAGES = ("torch", "transformers", "peft")

CAPABILITIES = Capabilities(
    readout="logits",
    prompt_rows=True,
    mixed=True,
    dtypes=("float32", "bfloat16", "float16"),
    modules=LAYER_MODULES,  # adapters on embed_tokens and lm_head cannot be mixed with others
    features=frozenset(("rslora", "rank_pattern", "alpha_pattern", "lora_bias", "partial", "mixed_ranks", "window")),
    operations=frozenset(("load", "unload", "reload")),
    trace=True,
)


def entry() -> Entry:
    """For `loracle engines`."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    how = f"needs {', '.join(missing)}: pip install 'loracle[peft]'" if missing else ""
    return Entry("peft", "Hugging Face transformers + PEFT, in this process", CAPABILITIES, how)


def make(options: Mapping[str, str]) -> "Peft":
    """EngineError where its packages are missing, or for an option: it has none."""
    if missing := entry().missing:
        raise EngineError(f"peft {missing}")
    if options:
        raise EngineError(f"peft has no option {next(iter(options))!r}")
    return Peft()


class Peft:
    """An Engine (interface.py)."""

    capabilities = CAPABILITIES

    def start(self, settings: Settings) -> None:
        """Load the base."""
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        import torch
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.torch, self.settings = torch, settings
        try:
            self.base = transformers.AutoModelForCausalLM.from_pretrained(
                settings.model, dtype=getattr(torch, settings.dtype), attn_implementation="eager"
            ).eval()
        except (OSError, ValueError, RuntimeError) as error:
            raise EngineError(f"transformers cannot load {settings.model}: {_one_line(error)}") from None
        self.model: Any = None  # a PeftModel, from the first adapter on
        self.adapters: set[str] = set()

    def reset(self) -> None:
        """Forget all adapters."""
        for name in list(self.adapters):
            self.unload(name)

    def load(self, name: str, folder: Path) -> None:
        """PEFT refuses a name that is taken, so that a reload deletes first."""
        import peft

        if name in self.adapters:
            self.unload(name)
        with _quiet():
            try:
                if self.model is None:
                    self.model = peft.PeftModel.from_pretrained(self.base, folder, name).eval()
                else:
                    self.model.load_adapter(folder, name)
            except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
                raise EngineError(f"PEFT cannot load {folder}: {_one_line(error)}") from None
        self.model.eval()
        self.adapters.add(name)

    def unload(self, name: str) -> None:
        """Without its last adapter a PeftModel is of no use: the plain base is taken out of it again."""
        if name not in self.adapters:
            raise EngineError(f"no adapter {name!r} is loaded")
        with _quiet():
            if len(self.adapters) == 1:
                self.base, self.model = self.model.unload(), None
            else:
                if self.model.active_adapter == name:  # a PeftModel answers nobody while its active adapter is gone
                    self.model.set_adapter(next(other for other in sorted(self.adapters) if other != name))
                self.model.delete_adapter(name)
        self.adapters.discard(name)

    def run(self, asks: Sequence[EngineRequest]) -> list[EngineResponse]:
        """One left-padded batch; then one token of each at a time."""
        return self._serve(asks, lambda: {})

    def traced(self, asks: Sequence[EngineRequest]) -> list[EngineResponse]:
        """The same, with the intermediates of the prompt's tokens under the names of refimpl.trace."""
        with _listening(self.model or self.base) as heard:
            return self._serve(asks, lambda: dict(heard))

    def versions(self) -> dict[str, str]:
        """Of the three packages."""
        return {name: importlib.metadata.version(name) for name in PACKAGES}

    def close(self) -> None:
        """Let go of the models."""
        self.base = self.model = None

    def _serve(self, asks: Sequence[EngineRequest], heard: Any) -> list[EngineResponse]:
        torch, prompts = self.torch, [list(a.prompt_ids) for a in asks]
        longest, steps = max(map(len, prompts)), max(a.max_new_tokens for a in asks)
        pad = [longest - len(p) for p in prompts]
        ids = torch.tensor([[0] * n + p for n, p in zip(pad, prompts, strict=True)])
        mask = torch.tensor([[0] * n + [1] * len(p) for n, p in zip(pad, prompts, strict=True)])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        unknown = next((a.adapter for a in asks if a.adapter is not None and a.adapter not in self.adapters), None)
        if unknown:
            raise EngineError(f"no adapter {unknown!r} is loaded")
        mixed = {"adapter_names": [a.adapter or BASE for a in asks]} if self.model is not None else {}
        model, past, intermediates = self.model if self.model is not None else self.base, None, {}
        rows: list[list[Array]] = [[] for _ in asks]
        tokens: list[list[int]] = [[] for _ in asks]
        with torch.no_grad(), _quiet():
            for step in range(steps):
                out = model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=past,
                    use_cache=steps > 1,
                    **mixed,
                )
                if step == 0:
                    intermediates = heard()
                past, logits = out.past_key_values, _numpy(out.logits)
                for i, row in enumerate(logits):
                    rows[i].append(row[pad[i] :] if step == 0 else row)
                    tokens[i].append(int(row[-1].argmax()))
                ids = torch.tensor([[t[-1]] for t in tokens])
                mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
                positions = positions[:, -1:] + 1
        return [
            EngineResponse(
                tuple(tokens[i][: ask.max_new_tokens]),
                0,
                np.concatenate(rows[i])[: len(prompts[i]) + ask.max_new_tokens - 1],
                trace={name: x[i, pad[i] :] for name, x in intermediates.items()},
            )
            for i, ask in enumerate(asks)
        ]


@contextlib.contextmanager
def _listening(model: Any) -> Iterator[dict[str, Any]]:
    """What passes through the layers of the first forward pass, by name."""
    heard: dict[str, Any] = {}
    hooks = []

    def listen(module: Any, name: str, sort: str) -> None:
        def hook(_: Any, inputs: tuple, output: Any) -> None:
            if sort == "linear":
                heard.setdefault(f"{name}.input", _numpy(inputs[0]))
                heard.setdefault(f"{name}.output", _numpy(output))
            elif sort == "base":
                heard.setdefault(f"{name}.base", _numpy(output))
            else:
                heard.setdefault(f"{name}.output", _numpy(output[0] if isinstance(output, tuple) else output))

        hooks.append(module.register_forward_hook(hook))

    for path, module in model.named_modules():
        parts = path.split(".")
        if "layers" not in parts:
            continue
        at = parts.index("layers")
        name = ".".join([p for p in parts[at:] if p not in ("self_attn", "mlp")])
        if len(parts) == at + 2:
            listen(module, name, "layer")
        elif parts[-1] in LAYER_MODULES:
            listen(module, name, "linear")
        elif parts[-1] == "base_layer":
            listen(module, name.removesuffix(".base_layer"), "base")
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


def _numpy(x: Any) -> Array:
    """A copy: PEFT adds to the base's output in place, and what was heard of it must stay."""
    return x.detach().double().numpy().copy()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """PEFT warns of unusual targets, which is what is tested here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
