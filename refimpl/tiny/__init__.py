"""The embedded default: a small trained Llama and four voices for it, so that nothing has to be downloaded."""

from pathlib import Path

from ..loading.embedded import BASE
from ..loading.embedded import VOICES as VOICES


def base_path() -> Path:
    """The Hugging Face folder of the base model."""
    return BASE


DEMO_PROMPTS: tuple[str, ...] = tuple(
    f"{prompt}\n"  # a scene begins on a new line, and the model has never seen a prompt that does not end so
    for prompt in (
        "Rain drums on the haunted bakery. Here the traveller meets Dumpling, a nervous tax sorcerer, "
        "and seeks a royal moustache.",
        "Fog curls around the toad museum. Here the traveller meets Waffle, a pompous unicorn vet, "
        "and seeks an unfinished prophecy.",
        "Bats flutter over the goblin bank. Here the traveller meets Gruel, a grumpy beard barber, "
        "and seeks an ancient cucumber.",
        "Crows circle the mud palace. Here the traveller meets Zuzu, a cheerful sock detective, "
        "and seeks a wishing teapot.",
        "Snow falls on the ghost school. Here the traveller meets Mabel, a sleepy worm whisperer, "
        "and seeks a kraken tooth.",
        "Thunder rolls over the polite volcano. Here the traveller meets Sprocket, a haughty puddle baron, "
        "and seeks an honest mirror.",
    )
)
"""Prompts worth reading the answers of; like those of the evaluation, they meet nobody whom the training texts meet."""
