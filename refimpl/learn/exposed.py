"""Which known bugs do these requests expose? Each mutant of classes A to C serves them, and every row is compared.

A small random model in float64, so that an exact answer is known to 1e-9 and a bug cannot hide behind rounding; an
engine with three adapter slots, so that a fourth adapter evicts one. The batches are served one after the other.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from ..adapter import Adapter, PeftConfig
from ..arrays import Array
from ..config import LAYER_MODULES, ModelConfig
from ..engines.ours import Observed
from ..errors import LoracleError
from ..loading.suggestion import did_you_mean
from ..model import logits
from ..ops import NUMPY, Ops
from ..oracle.bugs import Mutant, llama_mutants
from ..request import Request
from ..synthetic.adapters import random_adapter
from ..synthetic.models import random_model
from ..weights import Model

CLASSES = "ABC"  # scale, which rows get which adapter, adapters in memory
ADAPTER_SLOTS = 3
BLOCK_SIZE = 4  # tokens
NEW_TOKENS = 1  # of a request that says nothing else
MOST_TOKENS = 60  # of all prompts and answers together: more make every bug show, and teach nothing
TOLERANCE = 1e-6  # of the largest logit: rounding in float64 is at 1e-15, and no mutant below 1e-4

CONFIG = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    eos_token_ids=(),
)

Batches = Sequence[Sequence[Request]]
Write = Callable[[Callable[..., Adapter]], Batches]  # the learner's function: gets a maker of adapters


@functools.cache
def model() -> Model:
    """The base that all requests are for."""
    return random_model(CONFIG, np.random.default_rng(12), "float64")


class AdapterMaker:
    """`adapter(name, r=8, lora_alpha=8, **peft)`: a random adapter, another one at each call.

    target_modules: a list of names. Further keys are PEFT's. LoracleError for a module or a key that there is not."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(
        self,
        name: str = "adapter",
        r: int = 8,
        lora_alpha: float = 8,
        target_modules: Sequence[str] = LAYER_MODULES,
        **peft: Any,
    ) -> Adapter:
        names = sorted({module[1] for module in CONFIG.modules()})
        if unknown := set(target_modules) - set(names):
            raise LoracleError(f"adapter {name!r}: {min(unknown)} is no module; there are {', '.join(names)}")
        keys = [key.name for key in fields(PeftConfig)]
        if unknown := set(peft) - set(keys):
            raise LoracleError(
                f"adapter {name!r}: {min(unknown)} is no key of its config{did_you_mean(min(unknown), keys)}"
            )
        self.count += 1
        rng = np.random.default_rng([12, self.count])
        config = PeftConfig(r, lora_alpha, target_modules=tuple(target_modules), **peft)
        return random_adapter(CONFIG, config, name, rng, snap=lambda numbers: numbers)


@dataclass
class Score:
    """What came of one set of requests."""

    batches: list[list[Request]]
    exposed: list[str] = field(default_factory=list)  # the mutants by name
    unexposed: list[str] = field(default_factory=list)
    clean_error: float = 0.0  # of the engine that has no bug, relative to the largest logit

    @property
    def tokens(self) -> int:
        """All that is computed: prompts, and the answers but for their last tokens."""
        return sum(len(request.prompt_ids) + new_tokens(request) - 1 for batch in self.batches for request in batch)


def mutants() -> dict[str, Mutant]:
    """Those that are counted, by name."""
    return {name: mutant for name, mutant in llama_mutants().items() if mutant.family in CLASSES}


def new_tokens(request: Request) -> int:
    """How many tokens a request of the learner produces: its own limit, or NEW_TOKENS."""
    return request.max_new_tokens or NEW_TOKENS


def score(write: Write) -> Score:
    """Count the mutants that some row of these requests would show. LoracleError for what is no list of batches."""
    result = Score(check(write(AdapterMaker())))
    if result.tokens > MOST_TOKENS:
        raise LoracleError(f"{result.tokens} tokens are too many: {MOST_TOKENS} will do")
    clean = serve(result.batches, NUMPY)
    answers = [[int(row.argmax()) for row in rows] for rows in clean]
    requests = [request for batch in result.batches for request in batch]
    right = [alone(request, tokens) for request, tokens in zip(requests, answers, strict=True)]
    result.clean_error = largest_error(clean, right)
    for name, mutant in mutants().items():
        (result.exposed if shows(mutant, result.batches, answers, right) else result.unexposed).append(name)
    return result


def check(batches: Any) -> list[list[Request]]:
    """The batches as lists. LoracleError unless each is a list of requests."""
    lists = isinstance(batches, list | tuple) and all(isinstance(batch, list | tuple) and batch for batch in batches)
    listed = [list(batch) for batch in batches] if lists else []
    if not listed or not all(isinstance(item, Request) for batch in listed for item in batch):
        raise LoracleError("expected a list of batches, each a list of Requests, as in [[Request([1, 2])]]")
    if any(request.temperature or request.stop_ids for batch in listed for request in batch):
        raise LoracleError(
            "temperature and stop_ids are not for these requests: each has one right answer of its length"
        )
    return listed


def shows(mutant: Mutant, batches: Batches, answers: Sequence[Sequence[int]], right: Sequence[Array]) -> bool:
    """Whether some row of the mutant differs from the right one. One that stops is seen by everybody."""
    with np.errstate(all="ignore"):
        try:
            rows = serve(batches, mutant.make(), answers)
        except (LoracleError, IndexError, ValueError, KeyError):
            return True
        return not largest_error(rows, right) <= TOLERANCE


def serve(batches: Batches, ops: Ops, answers: Sequence[Sequence[int]] | None = None) -> list[Array]:
    """The logits [new tokens, vocab] of every request in turn, from one engine that serves batch after batch.

    answers: the tokens that each request is to produce, whatever its logits say."""
    engine = Observed(model(), ops, block_size=BLOCK_SIZE, num_blocks=128, max_adapters=ADAPTER_SLOTS)
    engine.arrival = True
    ids: list[int] = []
    requests = [request for batch in batches for request in batch]
    for batch in batches:
        for request in batch:
            ids.append(engine.add(request, NEW_TOKENS))
            if answers is not None:
                engine.forced[ids[-1]] = answers[len(ids) - 1]
        while engine.busy:
            engine.step()
    return [answered(engine.rows[number], request) for number, request in zip(ids, requests, strict=True)]


def answered(rows: dict[int, Array], request: Request) -> Array:
    """Of a request's rows those from which its tokens were chosen: all that a user sees anything of."""
    first = len(request.prompt_ids) - 1
    return np.stack([rows[position] for position in range(first, first + new_tokens(request))])


def alone(request: Request, answer: Sequence[int]) -> Array:
    """The same rows, exact: the whole text as one prompt, with nobody beside it."""
    text = Request([*request.prompt_ids, *answer[:-1]], request.adapter)
    return logits(model(), [text])[0][len(request.prompt_ids) - 1 :]


def largest_error(rows: Sequence[Array], right: Sequence[Array]) -> float:
    """The largest difference of a logit, in units of the largest logit; NaN where one is."""
    largest = max(float(np.abs(expected).max()) for expected in right)
    return float(np.max([np.abs(row - expected).max() for row, expected in zip(rows, right, strict=True)])) / largest
