"""transformers + PEFT, in this process: a mixed batch with adapter_names=[...], left-padded, decoded with its cache.

What most people mean by "the right answer". Eager attention; adapters as PEFT holds them, in float32.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Array
from ..config import LAYER_MODULES
from ..families import DENSE
from .interface import Capabilities, EngineError, EngineRequest, EngineResponse, Entry, Settings

BASE = "__base__"  # what PEFT calls a row without adapter
PACKAGES = ("torch", "transformers", "peft")

CAPABILITIES = Capabilities(
    readout="logits",
    prompt_rows=True,
    mixed=True,
    dtypes=("float32", "bfloat16", "float16"),
    modules=LAYER_MODULES,  # adapters on embed_tokens and lm_head cannot be mixed with others
    features=frozenset(
        (
            "rslora",
            "rank_pattern",
            "alpha_pattern",
            "lora_bias",
            "partial",
            "mixed_ranks",
            "window",
            "rope_scaling",
        )
    ),
    operations=frozenset(("load", "unload", "reload")),
    trace=True,
    # Adapters on experts must all be on the same parameters; and the longrope of a Phi-3 is chosen by the batch.
    families=tuple(name for name in DENSE if name != "phi3"),
)


def entry() -> Entry:
    """Return its line of `loracle engines`."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    how = f"needs {', '.join(missing)}: pip install 'loracle[peft]'" if missing else ""
    return Entry("peft", "Hugging Face transformers + PEFT, in this process", CAPABILITIES, how)


def make(options: Mapping[str, str]) -> "Peft":
    """Return the engine, not started. EngineError where its packages are missing, or for an option: it has none."""
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
        """Load the folder under the name. PEFT refuses a name that is in use: its adapter is deleted first."""
        import peft

        if name in self.adapters:
            self.unload(name)
        with _quiet():
            try:
                if why := why_alone(peft.PeftConfig.from_pretrained(folder)):
                    raise EngineError(f"PEFT cannot serve {folder} beside other requests: {why}")
                if self.model is None:
                    self.model = peft.PeftModel.from_pretrained(self.base, folder, name).eval()
                else:
                    self.model.load_adapter(folder, name)
            except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
                raise EngineError(f"PEFT cannot load {folder}: {_one_line(error)}") from None
        self.model.eval()
        self.adapters.add(name)

    def unload(self, name: str) -> None:
        """Forget the name. Without its last adapter a PeftModel is of no use: the plain base is taken out again."""
        if name not in self.adapters:
            raise EngineError(f"no adapter {name!r} is loaded")
        with _quiet():
            if len(self.adapters) == 1:
                self.base, self.model = self.model.unload(), None
            else:
                if self.model.active_adapter == name:  # a PeftModel serves no request while its active adapter is gone
                    self.model.set_adapter(next(other for other in sorted(self.adapters) if other != name))
                self.model.delete_adapter(name)
        self.adapters.discard(name)

    def run(self, requests: Sequence[EngineRequest]) -> list[EngineResponse]:
        """Serve these as one left-padded batch, and then one token of each at a time."""
        return self._serve(requests, lambda: {})

    def traced(self, requests: Sequence[EngineRequest]) -> list[EngineResponse]:
        """Serve these, with the intermediates of the prompt's tokens under the names of refimpl.trace."""
        with _listening(self.model or self.base) as intermediates:
            return self._serve(requests, lambda: dict(intermediates))

    def versions(self) -> dict[str, str]:
        """Return the versions of the three packages."""
        return {name: importlib.metadata.version(name) for name in PACKAGES}

    def close(self) -> None:
        """Free the models."""
        self.base = self.model = None

    def _serve(
        self, requests: Sequence[EngineRequest], prompt_trace: Callable[[], dict[str, Array]]
    ) -> list[EngineResponse]:
        """prompt_trace: called after the first forward pass, which is the prompts'."""
        torch, prompts = self.torch, [list(request.prompt_ids) for request in requests]
        model, mixed = self._model_for(requests)
        pad = [max(map(len, prompts)) - len(prompt) for prompt in prompts]
        ids = torch.tensor([[0] * n + prompt for n, prompt in zip(pad, prompts, strict=True)])
        mask = torch.tensor([[0] * n + [1] * len(prompt) for n, prompt in zip(pad, prompts, strict=True)])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        steps = max(request.max_new_tokens for request in requests)
        past, intermediates = None, {}
        rows: list[list[Array]] = [[] for _ in requests]
        tokens: list[list[int]] = [[] for _ in requests]
        with torch.no_grad(), _quiet():
            for step in range(steps):
                try:
                    out = model(
                        input_ids=ids,
                        attention_mask=mask,
                        position_ids=positions,
                        past_key_values=past,
                        use_cache=steps > 1,
                        **mixed,
                    )
                except IndexError as error:  # how PyTorch's embedding refuses an id past the vocabulary
                    raise EngineError(f"transformers refuses the batch: {_one_line(error)}") from None
                if step == 0:
                    intermediates = prompt_trace()
                past, logits = out.past_key_values, _numpy(out.logits)
                for i, row in enumerate(logits):
                    rows[i].append(row[pad[i] :] if step == 0 else row)
                    tokens[i].append(int(row[-1].argmax()))
                ids = torch.tensor([[produced[-1]] for produced in tokens])
                mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
                positions = positions[:, -1:] + 1
        return [
            EngineResponse(
                tuple(tokens[i][: request.max_new_tokens]),
                0,
                np.concatenate(rows[i])[: len(prompts[i]) + request.max_new_tokens - 1],
                trace={name: x[i, pad[i] :] for name, x in intermediates.items()},
            )
            for i, request in enumerate(requests)
        ]

    def _model_for(self, requests: Sequence[EngineRequest]) -> tuple[Any, dict[str, Any]]:
        """The model that serves them, and its argument that says which row has which adapter."""
        names = [request.adapter for request in requests]
        unknown = next((name for name in names if name is not None and name not in self.adapters), None)
        if unknown:
            raise EngineError(f"no adapter {unknown!r} is loaded")
        if self.model is None:
            return self.base, {}
        return self.model, {"adapter_names": [name or BASE for name in names]}


@contextlib.contextmanager
def _listening(model: Any) -> Iterator[dict[str, Any]]:
    """Collect inputs and outputs of the layers in the first forward pass, by name."""
    intermediates: dict[str, Any] = {}
    hooks = []

    def listen(module: Any, name: str, kind: str) -> None:
        def hook(_: Any, inputs: tuple, output: Any) -> None:
            if kind == "linear":
                intermediates.setdefault(f"{name}.input", _numpy(inputs[0]))
                intermediates.setdefault(f"{name}.output", _numpy(output))
            elif kind == "base":
                intermediates.setdefault(f"{name}.base", _numpy(output))
            else:
                intermediates.setdefault(f"{name}.output", _numpy(output[0] if isinstance(output, tuple) else output))

        hooks.append(module.register_forward_hook(hook))

    for path, module in model.named_modules():
        parts = path.split(".")
        if "layers" not in parts:
            continue
        start = parts.index("layers")
        name = ".".join([part for part in parts[start:] if part not in ("self_attn", "mlp")])
        if len(parts) == start + 2:
            listen(module, name, "layer")
        elif parts[-1] in LAYER_MODULES:
            listen(module, name, "linear")
        elif parts[-1] == "base_layer":
            listen(module, name.removesuffix(".base_layer"), "base")
    try:
        yield intermediates
    finally:
        for hook in hooks:
            hook.remove()


def _numpy(x: Any) -> Array:
    """A copy in float64: PEFT adds to the base's output in place, which would change what was collected."""
    return x.detach().double().numpy().copy()


def why_alone(config: Any) -> str | None:
    """Why PEFT cannot have an adapter of this config in a mixed batch, or would change the others, if that is so."""
    if getattr(config, "use_dora", False):
        return "it is DoRA"
    if getattr(config, "alora_invocation_tokens", None):
        return "it is aLoRA, whose start PEFT looks for in the produced tokens, too, if they are given as a prompt"
    if getattr(config, "layer_replication", None):
        return "its layer_replication makes another base for all"
    init = getattr(config, "init_lora_weights", None)
    if isinstance(init, str) and init.startswith(("pissa", "olora")):
        return f"init_lora_weights {init!r} takes a part out of the base for all"
    return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ignore warnings: PEFT warns of unusual targets, which are what is tested here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
