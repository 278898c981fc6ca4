"""Names of a model of text inside one of images and text: which prefix leads to the layers of the text."""

import re

# What such classes put before a text model's own names, in transformers 5 and 4 and in code of their own (InternVL,
# SmolVLM, Qwen-Omni): model.language_model.layers..., language_model.model.layers..., llm.lm_head...
TEXT = re.compile(
    r"(?:model\.)?(?:thinker\.)?(?:language_model|text_model|language_decoder|llm|thinker)\."
    r"(?:(?:model\.)?(?P<inner>layers\..+|(?:embed_tokens\w*|norm|per_layer_\w+)(?:\..+)?)|"
    r"(?P<head>lm_head\..+|lm_head))"
)

# The parts that see or hear, wherever one of these names stands between dots.
SENSES = re.compile(
    r"(?:^|\.)(?:visual|vision\w*|image_\w+|img_\w+|video_\w+|siglip\w*|clip\w*|multi_modal_projector|mm_projector|"
    r"connector|aligner|patch_merger|embed_vision|embed_audio|audio\w*|speech\w*|resampler|perceiver\w*|mlp1)(?:\.|$)"
)


def text_name(name: str) -> str | None:
    """The tensor's name in the text model alone, or None for one of the parts that see images, or hear."""
    if SENSES.search(name):
        return None
    match = TEXT.fullmatch(name)
    if match is None:
        return name
    return match["head"] or f"model.{match['inner']}"


def spellings(name: str) -> tuple[str, ...]:
    """A module's name in the text model alone, and in models of images and text of transformers 5 and 4: what a
    pattern of target_modules may have been written for."""
    return (name, name.replace("model.", "model.language_model.", 1), f"language_model.{name}")


def wrapper_of(name: str) -> str | None:
    """The prefix of such a class on a name of the text model, if it has one: "model.language_model."."""
    match = TEXT.fullmatch(name)
    return name[: match.start("inner" if match["inner"] else "head")] if match else None
