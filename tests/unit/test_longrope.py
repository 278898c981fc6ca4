"""A rotation that depends on a request's length: chosen for each request, and part of its prefix keys."""

import dataclasses

import numpy as np
from support.build import random_model

from refimpl import Engine, Request, logits
from refimpl.config import ModelConfig, Rope

ROPE = Rope(100.0, "longrope", original_max_position_embeddings=12, short_factor=(1.0, 1.5), long_factor=(3.0, 7.0))
CONFIG = ModelConfig(23, 10, 13, 2, 4, 2, 4, rope=ROPE, max_position_embeddings=64)
MODEL = random_model(CONFIG, 5)
SHORT, LONG = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3], [*range(20)]


def test_nobody_hears_how_long_a_neighbour_is() -> None:
    together = logits(MODEL, [Request(SHORT), Request(LONG)])
    for rows, prompt in zip(together, (SHORT, LONG), strict=True):
        np.testing.assert_allclose(rows, logits(MODEL, [Request(prompt)])[0], rtol=1e-12, atol=1e-12)
    others = dataclasses.replace(MODEL, config=dataclasses.replace(CONFIG, rope=Rope(100.0)))
    assert np.abs(together[1] - logits(others, [Request(LONG)])[0]).max() > 1e-3


def test_a_long_request_shares_no_block_with_a_short_one() -> None:
    """Both have one prompt; one will have more tokens than the original context. Blocks of the other kind would be keys
    that were turned otherwise."""

    def tokens(*counts: int) -> list[list[int]]:
        engine, results = Engine(MODEL, block_size=2, num_blocks=64), []
        for count in counts:
            engine.add(Request(SHORT, stop_ids=()), count)
            produced = []
            while engine.busy:
                produced += [token.token_id for token in engine.step()]
            results.append(produced)
        return results

    keys = [CONFIG.rope_key(limit) for limit in (11, 12, 13, 30)]
    assert keys[0] == keys[1] and keys[2] == keys[3] and keys[1] != keys[2]
    alone = {count: tokens(count)[0] for count in (2, 20)}
    assert tokens(2, 20, 2) == [alone[2], alone[20], alone[2]]
