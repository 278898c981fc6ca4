"""B, D, F with activated LoRA (alora.py): it acts from elsewhere on, or never, or its blocks have the base's key."""

from collections.abc import Sequence

from ...alora import NEVER, activation_start, keyed_adapters
from ...arrays import Precision
from ...kv_cache import prefix_key
from ...ops import Ops
from .b_identity import identity
from .d_prefix import prefix
from .f_not_applied import not_applied
from .steps import but


@identity.bug("an aLoRA acts from the token after its invocation's first on, not from that one on", needs="aLoRA")
def alora_starts_one_late() -> Ops:
    def start(prompt_ids: Sequence[int], invocation: Sequence[int]) -> int:
        right = activation_start(prompt_ids, invocation)
        return right + 1 if invocation and right != NEVER else right

    return but(activation_start=start)


@identity.bug("an aLoRA acts from the first occurrence of its invocation on, not from the last", needs="aLoRA")
def alora_starts_at_the_first_occurrence() -> Ops:
    def start(prompt_ids: Sequence[int], invocation: Sequence[int]) -> int:
        prompt, n = list(prompt_ids), len(invocation)
        starts = (i for i in range(len(prompt) - n + 1) if prompt[i : i + n] == list(invocation))
        return next(starts, NEVER) if n else 0

    return but(activation_start=start)


@identity.bug("an aLoRA acts from the first token of the prompt on: it is served as plain LoRA", needs="aLoRA")
def alora_acts_everywhere() -> Ops:
    return but(activation_start=lambda prompt_ids, invocation: 0)


@not_applied.bug(
    "an aLoRA never acts: its invocation is not found", "https://github.com/huggingface/peft/pull/3003", needs="aLoRA"
)
def alora_invocation_not_found() -> Ops:
    return but(activation_start=lambda prompt_ids, invocation: NEVER if invocation else 0)


@prefix.bug("the block in which an aLoRA begins to act has the base's prefix key", needs="aLoRA in sequence")
def alora_block_keyed_as_the_base() -> Ops:
    stops: list[tuple[Sequence[int], int]] = [((), 0)]  # of the block whose key is made now

    def keyed(adapters: Sequence[tuple[bytes, float]], starts: Sequence[int], stop: int) -> list[tuple[bytes, float]]:
        stops[:] = [([start for start in starts if start < stop], stop)]
        return keyed_adapters(adapters, starts, stop)

    def key(parent: bytes, token_ids: Sequence[int], base: bytes, p: Precision, adapters: Sequence) -> bytes:
        starts, stop = stops[0]
        first = stop - len(token_ids)
        acting = [one for one, start in zip(adapters, starts, strict=True) if start <= first]
        return prefix_key(parent, token_ids, base, p, acting)

    return but(keyed_adapters=keyed, prefix_key=key)
