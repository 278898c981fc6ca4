"""Our own engine, driven as any other: with any backend, which may have a bug (a mutant).

It shows every row that it computes, and can be made to go on with tokens that another engine produced, so that both
score the same text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from .. import __version__
from ..adapter import Adapter
from ..arrays import DTYPES, Array, Precision, ceil_div, to_host
from ..batch import ScheduledRequest, make_batch
from ..config import EMBED, LAYER_MODULES, LM_HEAD
from ..engine import Engine as Server
from ..families import MODEL_TYPES
from ..loading.adapter_folder import load_adapter
from ..loading.model_folder import load_model
from ..model import forward, logit_width
from ..ops import NUMPY, Ops
from ..request import Request
from ..request_state import RequestState
from ..weights import Model
from .interface import (
    FEATURES,
    OPERATIONS,
    Capabilities,
    Computed,
    EngineError,
    EngineRequest,
    EngineResponse,
    Settings,
)

BLOCK_SIZE = 8

YOURS, OURS = "steps of yours", "steps of ours"  # what an engine with steps of a learner says beside its versions
CAPABILITIES = Capabilities(
    readout="logits",
    prompt_rows=True,
    mixed=True,
    dtypes=tuple(DTYPES),
    modules=(*LAYER_MODULES, EMBED[1], LM_HEAD[1]),
    features=frozenset(FEATURES),
    operations=frozenset(OPERATIONS),
    families=MODEL_TYPES,
)


class Observed(Server):
    """The engine of refimpl/engine.py that keeps every row of logits, and produces tokens that somebody else chose."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.rows: dict[int, dict[int, Array]] = {}  # request -> position -> logits
        self.computed: dict[int, list[Computed]] = {}  # request -> the steps that computed it
        self.passes = 0
        self.forced: dict[int, Sequence[int]] = {}  # request -> the tokens that it is to produce
        self.arrival = False  # are the rows of a batch in the order of arrival, or sorted by adapter?

    def _check_logits(self, rows: list[Array], scheduled: list[tuple[RequestState, int]]) -> None:
        """Serve whatever comes: a NaN is for the oracle to find."""

    def _last_rows(self, scheduled: list[tuple[RequestState, int]]) -> Array:
        if not self.arrival:
            return self._rows_in_order(scheduled)
        order = sorted(range(len(scheduled)), key=lambda i: scheduled[i][0].id)
        last = self._rows_in_order([scheduled[i] for i in order])
        return last[np.argsort(order)]

    def _rows_in_order(self, scheduled: list[tuple[RequestState, int]]) -> Array:
        work = [
            ScheduledRequest(
                state.tokens[state.computed : state.computed + n],
                state.computed,
                state.table,
                state.adapters,
                state.limit - 1,  # the last token that it produces is never computed
                starts=state.starts,
            )
            for state, n in scheduled
        ]
        batch = make_batch(work, self.cache, self.adapters.slots, self.ops, every_row=True)
        rows = to_host(forward(self.model, batch, self.cache, self.adapters.slots, self.ops, self.precision))
        query_start_loc = batch.attention.query_start_loc
        # The backend chooses each request's last row, and may choose a wrong one: that is a bug like any other.
        last = rows[self.ops.logits_indices(query_start_loc, False)]
        self.passes += 1
        for i, (state, n) in enumerate(scheduled):
            slot = state.adapters[0][0] if state.adapters else -1
            part = Computed(self.passes, int(query_start_loc[i]), state.computed, n, slot)
            self.computed.setdefault(state.id, []).append(part)
            width = logit_width(state.request, self.model)
            rows_of_request = self.rows.setdefault(state.id, {})
            for j in range(n):
                row = last[i] if j == n - 1 else rows[query_start_loc[i] + j]
                rows_of_request[state.computed + j] = row[:width]
        return last

    def _choose(self, row: Array, state: RequestState) -> int:
        forced = self.forced.get(state.id, ())
        return int(forced[state.produced]) if state.produced < len(forced) else super()._choose(row, state)


class Ours:
    """An Engine (interface.py). `make_ops` makes a new backend, so that a mutant's own state starts empty."""

    capabilities = CAPABILITIES
    new_for_each_batch = True  # to start over costs nothing, and a bug that reads what was left behind is repeatable

    def __init__(
        self,
        make_ops: Callable[[], Ops] = lambda: NUMPY,
        precision: Precision | None = None,
        model: Model | None = None,
        adapters: Mapping[Path, Adapter] | None = None,
    ) -> None:
        """Keep what is loaded already (model, adapters by folder); anything else is read from its folder.

        A make_ops whose attribute `arrival` is true gets batches in the order of arrival, as in most engines; others
        get them sorted by adapter."""
        self.make_ops, self.precision, self.model = make_ops, precision, model
        self.loaded = dict(adapters or {})

    def start(self, settings: Settings) -> None:
        """Load the model, unless it was given."""
        self.settings = settings
        if self.model is None:
            self.model = load_model(settings.model, settings.dtype)
        self.reset()

    def reset(self) -> None:
        """Make a new engine with empty caches."""
        assert self.model is not None
        settings = self.settings
        blocks = ceil_div(settings.max_length, BLOCK_SIZE) + 1
        self.server = Observed(
            self.model,
            self.make_ops(),
            self.precision,
            num_blocks=(
                blocks * settings.max_requests if settings.kv_tokens is None else settings.kv_tokens // BLOCK_SIZE + 1
            ),
            block_size=BLOCK_SIZE,
            max_batch_tokens=settings.chunk or settings.max_length * settings.max_requests,
            max_running=settings.max_requests,
            max_adapters=settings.max_adapters,
            prefix_caching=settings.prefix_caching,
        )
        self.server.arrival = getattr(self.make_ops, "arrival", False)
        self.names: dict[str, Adapter] = {}

    def load(self, name: str, folder: Path) -> None:
        """Load the folder under the name, in place of what had the name before.

        The adapter gets its slot now, as in most engines: slots are filled in the order of loading, whatever the
        requests name later."""
        assert self.model is not None
        if folder not in self.loaded:
            self.loaded[folder] = load_adapter(folder, self.model)
        self.names[name] = replace(self.loaded[folder], name=name)
        slots = self.server.adapters
        if (acquired := slots.acquire_all([(self.names[name], 1.0)])) is not None:
            slots.release(acquired[0][0])

    def unload(self, name: str) -> None:
        """Forget the name. The weights stay in their slot until it is needed, as in any cache."""
        if name not in self.names:
            raise EngineError(f"no adapter {name!r} is loaded")
        del self.names[name]

    def run(
        self, requests: Sequence[EngineRequest], forced: Sequence[Sequence[int]] | None = None
    ) -> list[EngineResponse]:
        """Serve these together. forced: the tokens that each request must produce; without it, the greedy ones."""
        server, ids = self.server, {}
        produced: dict[int, list[int]] = {}
        waiting = sorted(range(len(requests)), key=lambda i: requests[i].arrival_step)
        step = 0
        while waiting or server.busy:
            while waiting and (requests[waiting[0]].arrival_step <= step or not server.busy):
                i = waiting.pop(0)
                ids[i] = server.add(self._request(requests[i]))
                produced[ids[i]] = []
                if forced is not None:
                    server.forced[ids[i]] = forced[i]
            for token in server.step():
                produced[token.request_id].append(token.token_id)
            for i, request_id in ids.items():
                limit = requests[i].cancel_after
                if limit is not None and len(produced[request_id]) >= limit:
                    server.cancel(request_id)
            step += 1
        return [
            replace(
                _response(request, server.rows.pop(ids[i], {}), produced[ids[i]]),
                steps=tuple(server.computed.pop(ids[i], ())),
            )
            for i, request in enumerate(requests)
        ]

    def versions(self) -> dict[str, str]:
        """Return our own version and NumPy's."""
        return {"loracle": __version__, "numpy": np.__version__}

    def close(self) -> None:
        """Do nothing: no resource is held."""

    def _request(self, request: EngineRequest) -> Request:
        for name, _ in request.adapters:
            if name not in self.names:
                raise EngineError(f"no adapter {name!r} is loaded")
        adapters = [(self.names[name], weight) for name, weight in request.adapters]
        return Request(request.prompt_ids, adapters or None, max_new_tokens=request.max_new_tokens, stop_ids=())


def _response(request: EngineRequest, rows: Mapping[int, Array], produced: Sequence[int]) -> EngineResponse:
    """All rows from the first position on after which none is missing: a prefix from the cache has no rows."""
    first = last = len(request.prompt_ids) + max(len(produced), 1) - 2
    while first - 1 in rows:
        first -= 1
    if last not in rows:
        return EngineResponse(tuple(produced))
    shown = [rows[i] for i in range(first, last + 1)]
    # A bug may compute some rows without the tokens that the adapter adds: -inf stands for those.
    logits = np.full((len(shown), max(map(len, shown))), -np.inf, shown[0].dtype)
    for padded, row in zip(logits, shown, strict=True):
        padded[: len(row)] = row
    return EngineResponse(tuple(produced), first, logits=logits)
