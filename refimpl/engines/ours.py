"""Our own engine, driven as any other: with a table of steps, which may be a mutant's.

It shows every row that it computes, and can be made to go on with tokens that another engine produced, so that both
say what comes after the same text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from .. import __version__
from ..adapter import Adapter, load_adapter
from ..arrays import DTYPES, Array, Precision, to_host
from ..batch import ScheduledRequest, make_batch
from ..config import EMBED, LAYER_MODULES, LM_HEAD
from ..engine import Engine as Server
from ..engine import RequestState
from ..model import forward, logit_width
from ..ops import NUMPY, Ops
from ..request import Request
from ..weights import Model, load_model
from .interface import FEATURES, OPERATIONS, Capabilities, EngineError, EngineRequest, EngineResponse, Settings

BLOCK_SIZE = 8

CAPABILITIES = Capabilities(
    readout="logits",
    prompt_rows=True,
    mixed=True,
    dtypes=tuple(DTYPES),
    modules=(*LAYER_MODULES, EMBED[1], LM_HEAD[1]),
    features=frozenset(FEATURES),
    operations=frozenset(OPERATIONS),
)


class Observed(Server):
    """The engine of refimpl/engine.py; keeps every row of logits, and goes on with the tokens that it is told."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.rows: dict[int, dict[int, Array]] = {}  # request -> place -> logits
        self.forced: dict[int, Sequence[int]] = {}  # request -> the tokens that it is to produce
        self.arrival = False  # are the rows of a batch in the order of arrival, or sorted by adapter?

    def _last_rows(self, scheduled: list[tuple[RequestState, int]]) -> Array:
        if not self.arrival:
            return self._rows_in_order(scheduled)
        order = sorted(range(len(scheduled)), key=lambda i: scheduled[i][0].id)
        last = self._rows_in_order([scheduled[i] for i in order])
        return last[np.argsort(order)]

    def _rows_in_order(self, scheduled: list[tuple[RequestState, int]]) -> Array:
        work = [
            ScheduledRequest(g.tokens[g.computed : g.computed + n], g.computed, g.table, g.adapters)
            for g, n in scheduled
        ]
        batch = make_batch(work, self.cache, self.adapters.slots, self.ops, every_row=True)
        rows = to_host(forward(self.model, batch, self.cache, self.adapters.slots, self.ops, self.precision))
        # What the engine takes for each request's last row may be another row: that is a bug like any other.
        last = rows[self.ops.logits_indices(batch.attention.query_start_loc, False)]
        for i, (g, n) in enumerate(scheduled):
            width = logit_width(g.request, self.model)
            own = self.rows.setdefault(g.id, {})
            for j in range(n):
                row = last[i] if j == n - 1 else rows[batch.attention.query_start_loc[i] + j]
                own[g.computed + j] = row[:width]
        return last

    def _choose(self, row: Array, g: RequestState) -> int:
        forced = self.forced.get(g.id, ())
        return int(forced[g.produced]) if g.produced < len(forced) else super()._choose(row, g)


class Ours:
    """An Engine (interface.py). `make_ops` gives a fresh table of steps, so that a mutant's own state starts empty."""

    capabilities = CAPABILITIES
    new_for_each_batch = True  # to start over costs nothing, and a bug that reads what was left behind is repeatable

    def __init__(
        self,
        make_ops: Callable[[], Ops] = lambda: NUMPY,
        precision: Precision | None = None,
        model: Model | None = None,
        adapters: Mapping[Path, Adapter] | None = None,
    ) -> None:
        """model, adapters: what is loaded already; anything else is read from its folder. A make_ops with an attribute
        `arrival` that is true has its batches in the order of arrival, as most engines have."""
        self.make_ops, self.precision, self.model = make_ops, precision, model
        self.known = dict(adapters or {})

    def start(self, settings: Settings) -> None:
        """Load the model, unless it was given."""
        self.settings = settings
        if self.model is None:
            self.model = load_model(settings.model, settings.dtype)
        self.reset()

    def reset(self) -> None:
        """A new engine with empty caches."""
        assert self.model is not None
        s = self.settings
        blocks = -(-s.max_length // BLOCK_SIZE) + 1
        self.server = Observed(
            self.model,
            self.make_ops(),
            self.precision,
            num_blocks=blocks * s.max_requests if s.kv_tokens is None else s.kv_tokens // BLOCK_SIZE + 1,
            block_size=BLOCK_SIZE,
            max_batch_tokens=s.chunk or s.max_length * s.max_requests,
            max_running=s.max_requests,
            max_adapters=s.max_adapters,
            prefix_caching=s.prefix_caching,
        )
        self.server.arrival = getattr(self.make_ops, "arrival", False)
        self.names: dict[str, Adapter] = {}

    def load(self, name: str, folder: Path) -> None:
        """Under a name that is known: in the place of what had it. It gets its slot now, as in most engines, so that
        the slots are filled in the order of loading, whatever is asked later."""
        assert self.model is not None
        if folder not in self.known:
            self.known[folder] = load_adapter(folder, self.model.config)
        self.names[name] = replace(self.known[folder], name=name)
        slots = self.server.adapters
        if (held := slots.acquire_all([(self.names[name], 1.0)])) is not None:
            slots.release(held[0][0])

    def unload(self, name: str) -> None:
        """Forget the name. The weights stay in their slot until it is needed, as in any cache."""
        if name not in self.names:
            raise EngineError(f"no adapter {name!r} is loaded")
        del self.names[name]

    def run(self, asks: Sequence[EngineRequest], forced: Sequence[Sequence[int]] | None = None) -> list[EngineResponse]:
        """forced: the tokens that each request is to produce, where that is decided elsewhere."""
        server, ids = self.server, {}
        produced: dict[int, list[int]] = {}
        late = sorted(range(len(asks)), key=lambda i: asks[i].arrival_step)
        step = 0
        while late or server.busy:
            while late and (asks[late[0]].arrival_step <= step or not server.busy):
                i = late.pop(0)
                ids[i] = server.add(self._request(asks[i]))
                produced[ids[i]] = []
                if forced is not None:
                    server.forced[ids[i]] = forced[i]
            for token in server.step():
                produced[token.request_id].append(token.token_id)
            for i, request in ids.items():
                limit = asks[i].cancel_after
                if limit is not None and len(produced[request]) >= limit:
                    server.cancel(request)
            step += 1
        return [self._answer(asks[i], server.rows.pop(ids[i], {}), produced[ids[i]]) for i in range(len(asks))]

    def versions(self) -> dict[str, str]:
        """Ours and NumPy's."""
        return {"loracle": __version__, "numpy": np.__version__}

    def close(self) -> None:
        """Nothing is held."""

    def _request(self, ask: EngineRequest) -> Request:
        wanted = ask.adapter_weights or (((ask.adapter, 1.0),) if ask.adapter is not None else ())
        for name, _ in wanted:
            if name not in self.names:
                raise EngineError(f"no adapter {name!r} is loaded")
        adapters = [(self.names[name], weight) for name, weight in wanted]
        return Request(ask.prompt_ids, adapters or None, max_new_tokens=ask.max_new_tokens, stop_ids=())

    def _answer(self, ask: EngineRequest, rows: Mapping[int, Array], produced: Sequence[int]) -> EngineResponse:
        """From the first place on after which none is missing: a prefix that was found in the cache has no rows."""
        first = last = len(ask.prompt_ids) + max(len(produced), 1) - 2
        while first - 1 in rows:
            first -= 1
        if last not in rows:
            return EngineResponse(tuple(produced))
        shown = [rows[i] for i in range(first, last + 1)]
        # A bug may compute some rows without the words that the adapter adds: those are missing in them.
        logits = np.full((len(shown), max(map(len, shown))), -np.inf, shown[0].dtype)
        for row, own in zip(logits, shown, strict=True):
            row[: len(own)] = own
        return EngineResponse(tuple(produced), first, logits=logits)
