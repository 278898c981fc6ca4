"""The forward pass: the page that everyone reads.

    embed -> layers x { rms_norm -> q, k, v -> rope -> write_kv -> attention -> o -> rms_norm -> gated mlp } -> logits

x, the residual stream, is what each layer reads and adds to. Every linear layer is `project`: what the base computes,
plus what each token's adapters add to it (forward_context.py, with the other steps that all layers repeat). All that
changes while a model runs (the cache, the adapter slots) is passed in. That is a Llama. What another family has besides
(norms in other places, experts, multipliers, soft-caps) is data of its config, and nothing in a Llama's.
"""

from collections.abc import Sequence

from .adapter_cache import AdapterCache
from .adapter_slots import AdapterSlots
from .alora import starts_of
from .arrays import Array, Float, Precision, ceil_div, rounded, to_host
from .batch import ScheduledRequest, make_batch
from .config import EMBED, LM_HEAD, Module
from .forward_context import ForwardContext
from .kv_cache import KVCache
from .layer_inputs import end_of_layer
from .moe import experts
from .ops import NUMPY, Ops
from .plans import Batch
from .request import Request, check_list, check_request
from .weights import Model


def forward(
    model: Model,
    batch: Batch,
    cache: KVCache,
    adapters: AdapterSlots,
    ops: Ops,
    p: Precision,
    head: Module = LM_HEAD,
) -> Float[Array, "rows vocab"]:
    """One forward pass over all scheduled tokens of all requests: the logits of `batch.logits_indices`.

    Keys and values of all tokens are written to the cache. From o_proj of the last layer on, only those tokens are
    computed that get logits. Where an adapter of the batch extends the vocabulary, the rows of the others are filled up
    with -inf."""
    config, norms = model.config, model.config.norms
    run = ForwardContext(model, batch, adapters, ops, p)
    norm, turned, added, note = run.norm, run.turned, run.added, run.note

    x = ops.scaled(run.project(batch.device.token_ids, *EMBED), config.embedding_multiplier, p)
    finish = end_of_layer(run, x)
    for i in range(config.num_hidden_layers):
        h = norm(x, i, norms.attention_in)
        q, *kv = run.heads(h, i)
        q = norm(turned(norm(q, i, norms.q), i), i, norms.q_turned)
        q = ops.scaled(q, batch.device.query_growth, p)
        if kv:  # or else it reads an earlier layer's; where there is one for both, k is v
            k = norm(turned(norm(kv[0], i, norms.k), i), i, norms.k_turned)
            v = norm(kv[-1], i, norms.v)
            ops.write_kv(cache.k[i], cache.v[i], k, v, batch.attention, p)
            note(f"layers.{i}.", k_rope=k)
        mixed = ops.attention(q, cache.k[i], cache.v[i], batch.attention, model.view(i), p)
        mixed = run.values(mixed, i)
        note(f"layers.{i}.", q_rope=q, attention=mixed)
        if i == config.num_hidden_layers - 1:
            run, (x, h, mixed) = run.of_logits(x, h, mixed)  # of the others nothing more is read
        x = added(x, norm(run.project(mixed, i, "o_proj"), i, norms.attention_out))

        h = h if config.parallel else norm(x, i, norms.mlp_in)
        h = experts(run, h, i) if config.kind(i).sparse else run.mlp(h, i, config.mlp(i))
        x = finish(run, added(x, norm(h, i, norms.mlp_out)), i)
        note(f"layers.{i}.", output=x)

    h = run.normalised(x, model.norm)
    note("", norm=h)
    if head != LM_HEAD:  # of a classification (classification.py)
        return run.project(h, *head)
    logits = rounded(ops.all_gather(run.project(h, *LM_HEAD)), p.logits)
    logits = ops.softcap(ops.scaled(logits, 1 / config.logits_scaling, p), config.logits_softcap, p.logits)
    note("", logits=logits)
    return logits


def logits(
    model: Model, requests: Sequence[Request], ops: Ops = NUMPY, precision: Precision | None = None
) -> list[Float[Array, "tokens vocab"]]:
    """The logits of every prompt token of every request, all of them in one batch.

    One array [len(prompt), vocab] per request, in request order, in the type that products were taken in. The first
    line of a user's check of any engine."""
    p = model.precision(precision or Precision(ops.precision, model.dtype))
    check_list(requests)
    for request in requests:
        check_request(request, model.config)
    if not requests:
        return []
    batch, cache, adapters = whole_prompts(model, requests, ops, p, every_row=True)
    rows = to_host(forward(model, batch, cache, adapters.slots, ops, p))
    starts = batch.attention.query_start_loc
    return [
        rows[start:stop, : logit_width(r, model)] for r, start, stop in zip(requests, starts, starts[1:], strict=False)
    ]


def whole_prompts(
    model: Model, requests: Sequence[Request], ops: Ops, p: Precision, every_row: bool
) -> tuple[Batch, KVCache, AdapterCache]:
    """Return the batch that computes the prompts of all requests at once, with a cache and slots for it alone."""
    block_size = 16
    lengths = [len(r.prompt_ids) for r in requests]
    blocks = [ceil_div(n, block_size) for n in lengths]
    cache = KVCache(model.config, sum(blocks), block_size, p, model.device, ops.select_victim, ops.latent.kv_shape)
    adapters = AdapterCache(model, p, ops)
    scheduled = [
        ScheduledRequest(
            r.prompt_ids,
            0,
            cache.allocate(n),
            [(adapters.acquire(adapter), weight) for adapter, weight in r.adapters],
            starts=starts_of(r, ops.activation_start),
        )
        for r, n in zip(requests, blocks, strict=True)
    ]
    return make_batch(scheduled, cache, adapters.slots, ops, every_row), cache, adapters


def logit_width(request: Request, model: Model) -> int:
    """How many logits this request gets: the rows of the lm_head that its adapter brings along, or the base's."""
    heads = (adapter.replaced[LM_HEAD] for adapter, _ in request.adapters if LM_HEAD in adapter.replaced)
    return next((head.shape[0] for head in heads), model.config.vocab_size)
