"""Sequence classification: one score for each label, read out of the same forward pass where a text would go on.

    embed -> layers -> norm -> h of the last token -> score [labels, d_model] -> [labels]

The head is the base's (LlamaForSequenceClassification and its kind), or the adapter's own: PEFT puts `score` under
modules_to_save for task_type SEQ_CLS. A batch may hold adapters with heads of different numbers of labels.
"""

from collections.abc import Sequence
from dataclasses import replace

from .arrays import Array, Float, Precision, to_host
from .config import SCORE, ModelConfig
from .model import forward, whole_prompts
from .ops import NUMPY, Ops
from .request import Request, check_list, check_request, labels_of
from .weights import Model


def scores(
    model: Model, requests: Sequence[Request], ops: Ops = NUMPY, precision: Precision | None = None
) -> list[Float[Array, " labels"]]:
    """The scores (logits before a softmax) of every request, all of them in one batch.

    One array [labels] per request, in request order: of its adapter's head, or else of the base's. RequestError, in one
    line, for a request that has neither, and for what `logits` refuses."""
    p = model.precision(precision or Precision(ops.precision, model.dtype))
    check_list(requests)
    for request in requests:
        check_request(request, model.config, SCORE)
    if not requests:
        return []
    read = [replace(request, prompt_ids=scored_prompt(request.prompt_ids, model.config)) for request in requests]
    batch, cache, adapters = whole_prompts(model, read, ops, p, every_row=False)
    rows = to_host(forward(model, batch, cache, adapters.slots, ops, p, SCORE))
    return [row[: labels_of(request, model.config)] for row, request in zip(rows, requests, strict=True)]


def scored_prompt(prompt_ids: Sequence[int], config: ModelConfig) -> Sequence[int]:
    """Return the prompt up to the token whose hidden state is scored: the last that is not the padding token.

    A prompt of nothing else is scored at its first token (transformers, modeling_layers.py,
    GenericForSequenceClassification). Where padding is the end of text, that is not the prompt's last token."""
    last = (i for i in reversed(range(len(prompt_ids))) if prompt_ids[i] != config.pad_token_id)
    return prompt_ids[: next(last, 0) + 1]
