"""At which modules, and for which tokens: the regions of a request that a bug may be confined to."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...arrays import Array
from ...config import EMBED, LM_HEAD, ModelConfig, Module, short_name

COLUMN_PARALLEL = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "qkv_proj", "gate_up_proj", "input_linear")
OF_ONE_LAYER = ("the attention", "the MLP", "q_proj, k_proj and v_proj", "gate_proj and up_proj")
NAMES = 10  # of modules, up to which each set of them is a region; larger: slower
ARBITRARY = 7.0  # bits of such a set
BLOCKS = (4, 8, 16, 32)  # tokens that kernels and caches take together
IN_BATCH = (8, 16, 32, 48, 64, 128)  # tokens of a batch after which a buffer may end
STEPS = (2, 3, 4, 5, 6, 8)  # requests that a step has
BOUNDARIES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65)  # of tokens


@dataclass(frozen=True, eq=False)
class Region:
    """A set of modules, or of tokens. `words` follow "at" or "for"; "" is everywhere."""

    words: str
    members: Array  # bool
    cost: float  # bits, about
    assumes: str = ""  # what is taken to be so, in parentheses


def module_regions(config: ModelConfig) -> list[Region]:
    """Return sets of modules, simplest first, over config.modules()."""
    modules = config.modules()
    names = list(config.layer_modules)

    def region(words: str, cost: float, chosen: Sequence[Module]) -> Region:
        return Region(words, np.array([module in chosen for module in modules]), cost)

    inner = [module for module in modules if module[0] >= 0]
    regions = [region("", 0, modules), region("every module of the layers", 0.5, inner)]
    regions += [  # embeddings are looked up, and the head is computed for some rows alone: often by other code
        region(f"every module but {outer[1]}", 1.5, [module for module in modules if module != outer])
        for outer in modules
        if outer[0] < 0
    ]
    groups = {
        "q_proj, k_proj and v_proj": [name for name in names if name in ("q_proj", "k_proj", "v_proj")],
        "q_proj and k_proj": [name for name in names if name in ("q_proj", "k_proj")],
        "k_proj and v_proj": [name for name in names if name in ("k_proj", "v_proj")],
        "q_proj and v_proj": [name for name in names if name in ("q_proj", "v_proj")],
        "gate_proj and up_proj": [name for name in names if name in ("gate_proj", "up_proj")],
        "the attention": [name for name in names if name in (*config.qkv, "o_proj")],
        "the MLP": [name for name in names if name in (*config.gate_up, config.down)],
        "the column-parallel modules": [name for name in names if name in COLUMN_PARALLEL],
        "o_proj and the down projection": [name for name in names if name not in COLUMN_PARALLEL],
    }
    regions += [region(name, 1, [module for module in inner if module[1] == name]) for name in names]
    regions += [
        region(words, 2, [module for module in inner if module[1] in group])
        for words, group in groups.items()
        if len(group) > 1
    ]
    regions += [
        region(f"every module but {name}", 2, [module for module in modules if module[1] != name]) for name in names
    ]
    row_parallel = [module for module in inner if module[1] not in COLUMN_PARALLEL]
    words = "every module but o_proj and the down projection"
    regions.append(region(words, 2, [module for module in modules if module not in row_parallel]))
    layers = range(config.num_hidden_layers)
    regions += [region(f"layer {i}", 2, [module for module in inner if module[0] == i]) for i in layers]
    regions += [
        region(f"every layer from {i} on", 3, [module for module in inner if module[0] >= i]) for i in layers if i > 0
    ]
    regions += [
        region(f"every layer before {i}", 3, [module for module in inner if module[0] < i]) for i in layers if i > 1
    ]
    for parity, words in ((0, "even"), (1, "odd")):
        chosen = [module for module in inner if module[0] % 2 == parity]
        regions.append(region(f"the {words} layers", 3, chosen))
    regions += [region(short_name(module), 2.5 if module[0] >= 0 else 1, [module]) for module in modules]
    regions += [
        region(f"{name} from layer {i} on", 4, [module for module in inner if module[1] == name and module[0] >= i])
        for name in names
        for i in layers
        if i > 0
    ]
    parts = {words: groups[words] for words in OF_ONE_LAYER if len(groups[words]) > 1}
    for words, group in parts.items():
        for i in layers:
            of_group = [module for module in inner if module[1] in group]
            regions.append(region(f"{words} of layer {i}", 3.5, [module for module in of_group if module[0] == i]))
            regions.append(region(f"{words} from layer {i} on", 4.5, [module for module in of_group if module[0] >= i]))
    regions.append(region("embed_tokens and lm_head", 2, [EMBED, LM_HEAD]))
    return _distinct(regions)


def sets_of_names(config: ModelConfig) -> list[Region]:
    """Return every set of two modules or more by their names, in all layers: which modules an adapter may have, say,
    may depend on another adapter."""
    modules = config.modules()
    names = list(dict.fromkeys(module[1] for module in modules))
    if len(names) > NAMES:
        return []
    sets = [some for n in range(2, len(names)) for some in itertools.combinations(names, n)]
    return [Region(_listed(some), np.array([module[1] in some for module in modules]), ARBITRARY) for some in sets]


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def token_regions(
    tokens: int, prompt: int, offset: int = 0, beside: Sequence[int] = (), shared: int = 0, padding: int = 0
) -> list[Region]:
    """Return sets of a request's tokens, simplest first: `prompt` of them are its prompt, which begins `offset` tokens
    after its batch does. beside: how many tokens each other request of the batch produces, those after it negative.
    shared: of how many tokens at its beginning an earlier request had the same. padding: how many tokens more the
    longest prompt of its batch has."""
    index = np.arange(tokens)
    regions = [
        Region("", np.ones(tokens, bool), 0),
        Region("the prompt's tokens", index < prompt, 1),
        Region("decode steps", index >= prompt, 1),
        Region("the last token of the prompt", index == prompt - 1, 1.5),
        Region("every token of the prompt but the last", index < prompt - 1, 1.5),
        Region("the last token of the prompt and decode steps", index >= prompt - 1, 2),
        Region("the first token", index == 0, 2),
        Region("the first token and decode steps", (index == 0) | (index >= prompt), 2),
        Region("every token but the first", index > 0, 2),
        Region("every token of the prompt but the first", (index > 0) & (index < prompt), 2.5),
        Region("the first decode step", index == prompt, 2.5),
        Region("decode steps but the first", index > prompt, 2.5),
        Region("every second token", index % 2 == 1, 3),
        Region("every other token from the first on", index % 2 == 0, 3),
        Region("the second half of the prompt", (index >= prompt // 2) & (index < prompt), 3),
        Region("the first half of the prompt", index < prompt // 2, 3),
    ]
    for i in BOUNDARIES:
        regions.append(Region(f"tokens from place {i} on", index >= i, 3))
        regions.append(Region(f"tokens before place {i}", index < i, 3))
        regions.append(Region(f"tokens of the prompt from place {i} on", (index >= i) & (index < prompt), 3.5))
        regions.append(Region(f"the last {i} tokens of the prompt", (index >= prompt - i) & (index < prompt), 3.5))
        regions.append(Region(f"all but the last {i} tokens of the prompt", index < prompt - i, 3.5))
        regions.append(Region(f"the token at place {i}", index == i, 4))
    words = "tokens of the prompt, as many as the longest of the batch has more"
    regions.append(Region(f"the first {words}", index < min(padding, prompt), 3.5))
    regions.append(Region(f"the last {words}", (index >= prompt - padding) & (index < prompt), 3.5))
    again = min(shared, prompt - 1)  # the last token is always computed: it has a row
    for n in (1, *BLOCKS):
        words = f"those of its first tokens that were asked before{f', whole {n}s of them' if n > 1 else ''}"
        regions.append(Region(words, index < again - again % n, 2.5 if n == 1 else 3))
    return regions + _block_regions(index, prompt, offset) + _step_regions(index, prompt, beside)


def regions_of_ids(token_ids: Sequence[int], vocab: int) -> list[Region]:
    """Return sets of a request's tokens by what they are. vocab: how many tokens the base knows."""
    ids = np.array(token_ids)
    before = np.array([token in token_ids[:t] for t, token in enumerate(token_ids)])
    return [
        Region("tokens of id 0", ids == 0, 5),
        Region("tokens of other ids than 0", ids != 0, 5),
        Region("tokens that are the same as the one before", np.append(False, ids[1:] == ids[:-1]), 5),
        Region("tokens that stand further ahead in its text, too", before, 5),
        Region("tokens of the upper half of the base's vocabulary", (ids >= vocab // 2) & (ids < vocab), 5),
        Region("tokens that the base does not know", ids >= vocab, 5),
    ]


def _step_regions(index: Array, prompt: int, beside: Sequence[int]) -> list[Region]:
    """Return the decode steps in which so many requests of the batch are still there, all having begun together; those
    in which it is the first, or the last, of them; and those of which the prompt's step is one, too."""
    decoding = index >= prompt
    step = np.where(decoding, index - prompt + 1, 0)  # which of a batch's steps computes the token
    nobody = np.zeros(len(index), int)
    together = 1 + sum(((np.abs(n) > step).astype(int) for n in beside), nobody)
    before = sum(((step < n).astype(int) for n in beside if n > 0), nobody)
    after = sum(((step < -n).astype(int) for n in beside if n < 0), nobody)
    regions = [
        Region("decode steps in which it is the last of the batch", decoding & (after == 0), 3),
        Region("decode steps in which it is not the last of the batch", decoding & (after > 0), 3),
        Region("decode steps in which it is the first of the batch", decoding & (before == 0), 3),
        Region("decode steps in which it is not the first of the batch", decoding & (before > 0), 3),
        Region("steps in which it is the last of the batch", after == 0, 3),
        Region("steps in which it is not the last of the batch", after > 0, 3),
    ]
    for n in STEPS:
        words = f"decode steps in which {n - 1} requests or more of the batch are before it"
        regions.append(Region(words, decoding & (before >= n - 1), 3))
        regions.append(Region(f"decode steps of {n} requests or more", decoding & (together >= n), 3))
        regions.append(Region(f"decode steps of fewer than {n} requests", decoding & (together < n), 3))
        regions.append(Region(f"steps of {n} requests or more", together >= n, 3.5))
        regions.append(Region(f"steps of fewer than {n} requests", together < n, 3.5))
    power = (together & (together - 1)) == 0
    regions.append(Region("decode steps of a power of two of requests", decoding & power, 4))
    regions.append(Region("decode steps of no power of two of requests", decoding & ~power, 4))
    regions.append(Region("decode steps of an odd number of requests", decoding & (together % 2 == 1), 4))
    regions.append(Region("decode steps of an even number of requests", decoding & (together % 2 == 0), 4))
    return regions


def _block_regions(index: Array, prompt: int, offset: int) -> list[Region]:
    """Return the parts of a prompt that blocks of tokens cut off it: at its end, and where blocks run on through the
    batch, at its beginning; and what lies beyond so many tokens of the batch."""
    regions = []
    in_prompt = index < prompt
    for n in BLOCKS:
        tail = in_prompt & (index >= prompt - prompt % n)
        regions.append(Region(f"the tokens of the prompt beyond the last whole {n}", tail, 3.5))
        words = f"the tokens of the prompt before the next whole {n} of the batch"
        regions.append(Region(words, in_prompt & (index < -offset % n), 4))
        last = in_prompt & (index % n == n - 1)
        regions.append(Region(f"the last token of each {n} of the prompt", last, 3.5))
        words = f"the last token of each {n} of the prompt, and its last"
        regions.append(Region(words, last | (index == prompt - 1), 3.5))
        first = in_prompt & (index % n == 0) & (index > 0)
        regions.append(Region(f"the first token of each {n} of the prompt but the first", first, 3.5))
    for n in IN_BATCH:
        regions.append(Region(f"tokens of the batch's prompts from place {n} on", in_prompt & (offset + index >= n), 4))
        regions.append(Region(f"tokens of the batch's prompts before place {n}", in_prompt & (offset + index < n), 4))
    return regions


def _distinct(regions: Sequence[Region]) -> list[Region]:
    """Return those that have a member, each set once, under its simplest words."""
    distinct: dict[bytes, Region] = {}
    for one in sorted(regions, key=lambda region: region.cost):
        if one.members.any():
            distinct.setdefault(one.members.tobytes(), one)
    return list(distinct.values())
