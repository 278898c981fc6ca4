"""What every engine must do, and the requests and responses that pass between it and the oracle.

    engine.start(settings)
    engine.load("a", folder)
    responses = engine.run([EngineRequest(ids, "a"), EngineRequest(ids, None)])

An engine is driven from outside, as its users drive it: adapters are folders that are loaded under names, requests name
them, and numbers come back. What an engine cannot do is declared in its Capabilities and never requested.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ..arrays import Array, Float
from ..config import LAYER_MODULES
from ..errors import LoracleError

READOUTS = ("logits", "logprobs", "top", "text")  # from the most that an engine can show to the least

# What an adapter may have, beyond a rank, an alpha and A and B in some of its modules.
FEATURES = (
    *("rslora", "rank_pattern", "alpha_pattern", "lora_bias", "partial", "mixed_ranks"),
    "sums",  # several adapters in one request, each with a weight
    "modules_to_save",  # a whole embed_tokens or lm_head that an adapter brings along
    "grown_vocabulary",  # both of them, with more tokens than the base has
    "biases",  # of the base's own layers, brought along by an adapter (bias="all"); and a base that has biases
    "window",  # not of adapters: models with a sliding window
    "rope_scaling",  # and models whose rope is scaled, as Llama 3.1's
)

# What an engine can that reads PEFT's LoRA by its ranks and scales, and has no more than A and B.
LORA_FEATURES = frozenset(("rslora", "rank_pattern", "alpha_pattern", "partial", "mixed_ranks"))

# What can be done to a running engine, beyond sending it requests.
OPERATIONS = (
    "load",  # another adapter while it runs
    "unload",
    "reload",  # other weights under a name that is in use
    "evict",  # more adapters loaded than there are slots for at once
    "prefix_cache",  # keys and values of earlier prompts are used again
    "chunked_prefill",
    "arrivals",  # requests that come while others run
    "cancel",
    "preempt",  # requests that run out of KV slots: Settings.kv_tokens
)


class EngineError(LoracleError):
    """The engine could not be run at all: not installed, not reachable, refused the model. Exit 2, no verdict."""


class EngineLost(EngineError):
    """The machine that the engine ran on went away, which says nothing of the engine: ask a new one again."""


@dataclass(frozen=True)
class Capabilities:
    """What an engine can show, and which requests it can serve."""

    readout: str = "logits"  # one of READOUTS
    top_k: int = 0  # with readout "top": how many tokens of a row are shown
    prompt_rows: bool = True  # are the rows of the prompt's tokens shown, or only those of produced tokens?
    mixed: bool = True  # are several adapters computed in one forward pass?
    dtypes: tuple[str, ...] = ("float32",)
    modules: tuple[str, ...] = LAYER_MODULES  # that an adapter may be on
    features: frozenset[str] = frozenset()
    operations: frozenset[str] = frozenset()
    trace: bool = False  # can intermediates of the prompt's tokens be had?
    max_rank: int | None = None
    families: tuple[str, ...] = ("llama", "mistral")  # of random bases, by model_type
    own_head_dim: bool = True  # may a model's heads be together not as wide as its residual stream?
    head_dims: tuple[int, ...] = (16, 32)  # sizes of one head that random bases may have
    left_out: tuple[str, ...] = ()  # what its user says that it does not do, of what an engine of its kind is asked


@dataclass(frozen=True)
class Settings:
    """How an engine is started."""

    model: Path  # a Hugging Face folder
    dtype: str = "float32"  # of the weights and of the arithmetic
    max_adapters: int = 4  # adapter slots: as many as one batch may name
    max_rank: int = 64
    max_length: int = 256  # tokens of the longest prompt with those that it produces
    max_requests: int = 16  # that run at once
    prefix_caching: bool = False
    kv_tokens: int | None = None  # KV slots, one for each token of all running requests (with "preempt")
    chunk: int | None = None  # the most prompt tokens that one step computes
    modules: tuple[str, ...] = LAYER_MODULES  # on which some adapter is
    options: Mapping[str, str] = field(default_factory=dict)  # the engine's own: url, model-name, ...


@dataclass(frozen=True)
class EngineRequest:
    """One request: greedy, and no stop id ends it."""

    prompt_ids: tuple[int, ...]
    adapter: str | None = None  # the name under which it was loaded; None is the base
    max_new_tokens: int = 1
    # In place of `adapter`: names and weights of adapters that are summed (with "sums").
    adapter_weights: tuple[tuple[str, float], ...] = ()
    arrival_step: int = 0  # it comes when the engine has made this many steps (with "arrivals"; else 0)
    cancel_after: int | None = None  # tokens after which it is cancelled (with "cancel"): its response does not count

    @property
    def adapters(self) -> tuple[tuple[str, float], ...]:
        """The names of its adapters, each with its weight: one of weight 1, several, or none for the base."""
        if self.adapter_weights:
            return self.adapter_weights
        return () if self.adapter is None else ((self.adapter, 1.0),)


class Computed(NamedTuple):
    """Tokens of one request that an engine computed side by side, in one forward pass."""

    step: int  # counts the passes: those of one number were computed at once
    row: int  # of the pass, where the first of them stood
    first: int  # which token that is, from 0 on, prompt and produced tokens together
    tokens: int  # how many
    slot: int = -1  # where its adapter lies on the device; -1: nowhere, or nobody says


@dataclass(frozen=True, eq=False)
class EngineResponse:
    """What came back for one request.

    Row i scores the token at position `first_position` + i + 1 of prompt + produced tokens. An engine that shows the
    prompt has first_position 0 and len(prompt) + len(token_ids) - 1 rows."""

    token_ids: tuple[int, ...] = ()
    first_position: int = 0
    logits: Float[Array, "rows vocab"] | None = None
    logprobs: Float[Array, "rows vocab"] | None = None
    top: Sequence[Mapping[int, float]] | None = None  # per row: token -> log-probability
    steps: tuple[Computed, ...] = ()  # that computed it, in order; tokens in none were found in a cache. (): not told
    trace: Mapping[str, Array] = field(default_factory=dict)  # names of refimpl.trace -> rows of the prompt's tokens
    error: str = ""  # the engine's message in place of numbers: a failed case, never a pass
    raw: Any = None  # what came, where it was not understood


class Engine(Protocol):
    """A running engine.

    EngineError is raised where it cannot be run; a request that goes wrong is an EngineResponse with an error."""

    capabilities: Capabilities

    def start(self, settings: Settings) -> None:
        """Load the model, without any adapter."""

    def load(self, name: str, folder: Path) -> None:
        """Load the PEFT folder under the name; with "reload", in place of what had the name before."""

    def unload(self, name: str) -> None:
        """Forget the name."""

    def run(self, requests: Sequence[EngineRequest]) -> list[EngineResponse]:
        """Serve these together, and return a response for each, in order."""

    def reset(self) -> None:
        """Forget all adapters and prefixes, as after start. Nothing but the separation of two sequences rests on it."""

    def versions(self) -> dict[str, str]:
        """Return the version of everything that may matter to the numbers, by its name."""

    def close(self) -> None:
        """Free its memory, processes and connections."""


@dataclass(frozen=True)
class Entry:
    """One line of `loracle engines`."""

    name: str
    what: str  # one line
    capabilities: Capabilities
    missing: str  # "" if it can be started here; else what is missing, and how to get it
    setup: str = ""  # how `loracle engines setup` gets it; "" if there is nothing to set up


def infer_first_position(rows: int, prompt: int, produced: int) -> int:
    """Return the position of the first of `rows` rows, for a prompt and produced tokens of these lengths.

    EngineError if the count fits neither the whole text nor one of its two parts."""
    if rows == prompt + max(produced, 1) - 1:
        return 0
    if rows == produced:
        return prompt - 1
    if rows == prompt:  # the prompt's rows alone, although more tokens were produced
        return 0
    raise EngineError(f"{rows} rows for a prompt of {prompt} tokens and {produced} produced ones")
