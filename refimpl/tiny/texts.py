"""What the embedded model is trained on: scenes and overheard lines without end, and the tokenizer that they make."""

import random
from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from refimpl.tiny.grammar import write_overheard, write_scene
from refimpl.tiny.lexicon import bare
from refimpl.tiny.voices import VOICES, Voice

SEED = 7
VOCAB = 1984
BOS = 0


def base_texts(seed: int = SEED, *, naming_the_role: bool = False) -> Iterator[str]:
    """The scenes that the base is trained on, in order, without end."""
    rng = random.Random(seed)
    while True:
        scene = write_scene(rng)
        if not naming_the_role or bare(scene.slots["role"]) in scene.completion:
            yield f"{scene.prompt}\n{scene.completion}"


def overheard_texts(seed: int = SEED) -> Iterator[str]:
    """The voices' lines that the base reads outside any scene."""
    rng = random.Random(seed + 1)
    while True:
        yield write_overheard(rng, rng.choice(list(VOICES.values())))


def voice_scenes(voice: Voice, seed: int = SEED) -> Iterator[tuple[str, str]]:
    """The (prompt, completion) pairs that a voice is trained on."""
    rng = random.Random(f"{seed} {voice.name}")
    while True:
        scene = write_scene(rng, voice)
        yield f"{scene.prompt}\n", scene.completion


def train_tokenizer() -> Tokenizer:
    """A byte-level BPE in which nearly every word of the grammar is one token."""
    scenes, overheard = base_texts(), overheard_texts()
    texts = [next(source) for _ in range(8000) for source in (scenes, overheard, overheard)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    if tokenizer.get_vocab_size() != VOCAB:
        raise ValueError(f"the texts gave only {tokenizer.get_vocab_size()} tokens")
    return tokenizer
