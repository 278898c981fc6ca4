"""The plan of a batch of pictures: which picture each row belongs to, its adapters, and its three positions.

Two pictures, of two and one patch, with captions of three and one tokens; filled up to a multiple of 4 for the drawing
(PAD_TO is 32), + is a token that fills up:

    patches    0 0 1                            what the model reads and writes
    words      0 0 0 1                          captions
    image      0 0 + +  1 + + +                 patches, filled up: noise_refiner
    text       0 0 0 +  1 + + +                 captions, filled up: context_refiner
    tokens     0 0 + + 0 0 0 +  1 + + + 1 + + +  each picture's patches, then its caption: layers
    pictures   0 1                              one row each: the time

Every linear layer sees one of these, so that each has a LoraMapping of its own. The plan of the text model is in
plans.py, and its mapping is this one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ..adapter_slots import AdapterSlots
from ..arrays import Array, Float, Int, Precision, ceil_div, device_namespace
from ..checks import check_adapter_ids
from ..ops import Ops
from ..plans import Adapters, LoraMapping
from .config import PAD_TO, PictureConfig

Grid = tuple[int, int]  # patches of one picture: rows, columns


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of all pictures, one picture behind the other."""

    starts: tuple[int, ...]  # picture i owns rows starts[i] to starts[i + 1]
    pictures: Int[Array, " rows"]  # whose row it is, on the device
    lora: LoraMapping


@dataclass(frozen=True, eq=False)
class Tokens(Rows):
    """Rows that see each other: where each comes from, and cos and sin of its positions."""

    source: Int[Array, " rows"]  # its row in the two pieces that it is put together from, one below the other
    turns: tuple[Float[Array, "rows half"], Float[Array, "rows half"]]


@dataclass(frozen=True, eq=False)
class PictureBatch:
    """One forward pass over all pictures."""

    pictures: Rows
    patches: Rows
    words: Rows
    image: Tokens
    text: Tokens
    tokens: Tokens
    patch_tokens: Int[Array, " patches"]  # where the patches are among the tokens


def make_picture_batch(
    grids: Sequence[Grid],
    caption_lengths: Sequence[int],
    per_picture: Sequence[Adapters],
    adapters: AdapterSlots,
    ops: Ops,
) -> PictureBatch:
    """The plan for one or more pictures of these grids, captions and adapters, none of them empty; checked once.

    LoracleError for an adapter slot that is not filled."""
    config, p, xp = adapters.model.config, adapters.precision, device_namespace(adapters.model.device)
    counts = [rows * columns for rows, columns in grids]
    image_lengths, text_lengths = padded_lengths(counts), padded_lengths(caption_lengths)
    lengths = [n + words for n, words in zip(image_lengths, text_lengths, strict=True)]

    def rows(lengths: Sequence[int]) -> dict[str, Any]:
        ids, weights = ops.lora_mapping(per_picture, lengths)
        check_adapter_ids(ids, adapters.slots)
        return {
            "starts": tuple(np.cumsum([0, *lengths]).tolist()),
            "pictures": xp.asarray(np.repeat(np.arange(len(lengths)), lengths)),
            "lora": LoraMapping.of(ids, weights, xp, ops.segments),
        }

    def tokens(lengths: Sequence[int], source: Array, positions: Array) -> Tokens:
        turns = tuple(xp.asarray(x) for x in turning(config, positions, ops, p))
        return Tokens(**rows(lengths), source=xp.asarray(source), turns=turns)

    image = image_positions(grids, image_lengths, text_lengths)
    text = text_positions(text_lengths)
    joint = interleaved(image_lengths, text_lengths)
    places = np.empty_like(joint)
    places[joint] = np.arange(len(joint))  # where each row of image, then of text, has gone
    return PictureBatch(
        Rows(**rows([1] * len(grids))),
        Rows(**rows(counts)),
        Rows(**rows(caption_lengths)),
        tokens(image_lengths, filled_up(counts, image_lengths), image),
        tokens(text_lengths, filled_up(caption_lengths, text_lengths), text),
        tokens(lengths, joint, np.concatenate([image, text])[joint]),
        xp.asarray(places[np.flatnonzero(filled_up(counts, image_lengths) < sum(counts))]),
    )


def padded_lengths(lengths: Sequence[int]) -> list[int]:
    """Each of them, up to the next multiple of PAD_TO."""
    return [ceil_div(n, PAD_TO) * PAD_TO for n in lengths]


def filled_up(lengths: Sequence[int], padded: Sequence[int]) -> Int[Array, " rows"]:
    """Which row of the pieces, laid end to end, each row is; where it fills up, the one after the last."""
    source = np.full(sum(padded), sum(lengths))
    for start, length, (first, _) in zip(
        np.cumsum([0, *padded]), lengths, pairwise(np.cumsum([0, *lengths])), strict=False
    ):
        source[start : start + length] = np.arange(first, first + length)
    return source


def interleaved(first: Sequence[int], second: Sequence[int]) -> Int[Array, " rows"]:
    """Which row, of all first pieces followed by all second ones, each row of first 0, second 0, first 1, ... is."""
    firsts = pairwise(np.cumsum([0, *first]).tolist())
    seconds = pairwise(np.cumsum([sum(first), *second]).tolist())
    return np.concatenate([np.arange(*piece) for pair in zip(firsts, seconds, strict=True) for piece in pair])


def text_positions(padded: Sequence[int]) -> Int[Array, "tokens 3"]:
    """(1 .. the padded length, 0, 0) of each caption's tokens, those that fill up included."""
    positions = np.zeros((sum(padded), 3), np.int32)
    positions[:, 0] = np.concatenate([np.arange(1, length + 1) for length in padded])
    return positions


def image_positions(grids: Sequence[Grid], padded: Sequence[int], captions: Sequence[int]) -> Int[Array, "tokens 3"]:
    """(one after its padded caption, row, column) of each patch; (0, 0, 0) of a token that fills up."""
    positions = np.zeros((sum(padded), 3), np.int32)
    for (rows, columns), start, caption in zip(grids, np.cumsum([0, *padded]), captions, strict=False):
        row, column = np.divmod(np.arange(rows * columns), columns)
        positions[start : start + rows * columns] = np.stack([np.full_like(row, caption + 1), row, column], 1)
    return positions


def turning(
    config: PictureConfig, positions: Int[Array, "tokens 3"], ops: Ops, p: Precision
) -> tuple[Float[Array, "tokens half"], Float[Array, "tokens half"]]:
    """cos and sin: the three axes side by side, each with channels of its own (ops.rope_table)."""
    lengths = np.ones(len(positions), np.int32)  # only longrope asks for them
    axes = [
        ops.rope_table(config.rope, channels, positions[:, i], lengths, p)
        for i, channels in enumerate(config.axes_dims)
    ]
    return np.concatenate([cos for cos, _ in axes], 1), np.concatenate([sin for _, sin in axes], 1)
