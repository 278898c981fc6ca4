"""What the ranks send: how many numbers the collectives of one forward pass return, as a formula.

    base            all-reduce   (2 layers + 1) d_model a token     o and down of each layer, and the embedding
                    all-gather   vocab a row of logits
    adapters        nothing      their delta is in the partial sums (cut as in vLLM)
    fully sharded   all-gather   r', for each column-parallel module and adapter of a token; r' = r rounded up to ranks
                    all-reduce   r, for each row-parallel one
    OLMo 2          all-reduce   2 a token and layer: the mean squares of q and k

From o of the last layer on, only the tokens count that get logits.

On a ring of R ranks each rank sends 2 (R-1)/R times the numbers of an all-reduce, and (R-1)/R times those of an
all-gather.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from ..adapter import Adapter
from ..arrays import ceil_div
from ..config import EMBED, LM_HEAD, ModelConfig
from .layout import IN, Layout


def numbers(
    config: ModelConfig,
    ranks: int,
    tokens: Sequence[Sequence[Adapter]],
    rows: Sequence[Sequence[Adapter]],
    fully_sharded: bool = False,
) -> Counter[str]:
    """Return {"all_reduce": numbers, "all_gather": numbers} of one forward pass over these tokens.

    tokens: the adapters of each token. rows: those of each token that gets logits, of the base's vocabulary. DoRA's
    collectives when an adapter is loaded are not in it."""
    layers, d_model = config.num_hidden_layers, config.hidden_size
    summed = len(tokens) * (2 * layers - 1) + len(rows) * 2
    total = Counter(all_reduce=summed * d_model, all_gather=len(rows) * config.vocab_size)
    if config.norms.whole_projection:
        total["all_reduce"] += len(tokens) * 2 * layers
    if fully_sharded:
        layout = Layout(config, 0, ranks)
        for some, end in ((tokens, False), (rows, True)):
            for adapter in (adapter for adapters in some for adapter in adapters):
                total += _of_adapter(adapter, layout, end)
    return total


def _of_adapter(adapter: Adapter, layout: Layout, end: bool) -> Counter[str]:
    """What one token with a fully sharded adapter adds: from o of the last layer on, or up to it."""
    total: Counter[str] = Counter()
    for module, tensors in adapter.lora.items():
        r = len(tensors.A)
        if module in (EMBED, LM_HEAD) or layout.config.for_logits_alone(module) is not end:
            continue
        if layout.split(module[1]) == IN:
            total["all_reduce"] += r
        else:
            total["all_gather"] += ceil_div(r, layout.size) * layout.size
    return total


def sent_by_each_rank(total: Mapping[str, int], ranks: int) -> float:
    """Return how many numbers each rank sends for these collectives on a ring (Thakur et al. 2005)."""
    share = (ranks - 1) / ranks
    return 2 * share * total.get("all_reduce", 0) + share * total.get("all_gather", 0)
