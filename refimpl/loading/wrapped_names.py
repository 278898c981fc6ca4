"""Names of a model of text inside one of images and text: which prefix leads to the layers of the text."""

# What such a class puts before a text model's own names, the longest first: transformers 5 and 4.
PREFIXES = {
    "model.language_model.": "model.",
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
}
OF_IMAGES = ("vision_tower.", "multi_modal_projector.")


def text_name(name: str) -> str | None:
    """The tensor's name in the text model alone, or None for one of the part that sees images."""
    if name.removeprefix("model.").startswith(OF_IMAGES):
        return None
    for prefix, plain in PREFIXES.items():
        if name.startswith(prefix):
            return plain + name.removeprefix(prefix)
    return name
