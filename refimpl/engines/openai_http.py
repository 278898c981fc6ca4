"""Any OpenAI-compatible server as an engine: vLLM, llama-server, SGLang, trtllm-serve.

    loracle check --engine openai_http --url http://localhost:8000 --adapter-name pirate=served-pirate

A few requests at the start find out which kind of server it is, what it can show and whether it loads adapters. Prompts
go out as token ids, all requests of a batch at once, each in a thread of its own; what comes back is checked
(servers/reading.py) before it is a response. The server gets the path of an adapter's folder to load it from, so that
both must see the same disk. Options, all of them text:

url            http://host:port, or with /v1 behind
model-name     what the server calls the base, if it has several
adapters       NAME=SERVED,...: adapters that the server has already, by what it calls them; then it loads no other
dialect        vllm, llama_server, sglang, trtllm; auto asks the server
timeout        seconds that one try may take (120)
clients        requests in flight while a batch is served: those of the batch, and strangers' (servers/strangers.py)
retries        after a broken connection, a 429 or a 5xx (2)
top-k          tokens per row, or all; by default all of up to 40,000, else the 1,000 greatest, or what is granted
max-rank       of adapters, as the server was started; none of them reports it
api-key-env    the environment variable with the key (OPENAI_API_KEY, if that is set)
"""

import math
import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..arrays import DTYPES
from ..loading.config_file import load_config
from .interface import Capabilities, Engine, EngineError, EngineRequest, EngineResponse, Entry, Settings
from .servers.client import BadResponse, Client, Refused
from .servers.dialect import Dialect, models
from .servers.llama_server import LlamaServer
from .servers.reading import checked
from .servers.sglang import SGLang
from .servers.strangers import strangers
from .servers.trtllm import TensorRTLLM
from .servers.vllm import VLLM

DIALECTS: dict[str, type[Dialect]] = {dialect.name: dialect for dialect in (VLLM, LlamaServer, SGLang, TensorRTLLM)}
OWNERS = {"vllm": "vllm", "llamacpp": "llama_server", "sglang": "sglang", "tensorrt_llm": "trtllm"}  # in /v1/models
OPTIONS = (
    "url",
    "model-name",
    "adapters",
    "dialect",
    "clients",
    "timeout",
    "retries",
    "top-k",
    "max-rank",
    "api-key-env",
)
WHOLE = 40_000  # the largest vocabulary of which whole rows are requested: above, hundreds of megabytes of JSON each
WIDTHS = (1000, 20, 5, 1)  # tokens per row to try else; 20 is vLLM's default limit, 5 is OpenAI's
FORBIDDEN = (401, 403)
PROBE = EngineRequest((0, 1))

# What a server may turn out to show, before it is started.
CAPABILITIES = Capabilities(readout="logprobs", dtypes=tuple(DTYPES))


def entry() -> Entry:
    """Return its line of `loracle engines`: nothing has to be installed for it."""
    what = "any OpenAI-compatible server: vLLM, llama-server, SGLang, trtllm-serve; --url"
    return Entry("openai_http", what, CAPABILITIES, missing="")


def make(options: Mapping[str, str]) -> Engine:
    """Return the engine, not started. EngineError for an option that is unknown or no good."""
    return OpenAIHTTP(options)


class OpenAIHTTP:
    """An Engine (interface.py)."""

    capabilities, runs_on = CAPABILITIES, True  # it runs on, whatever is asked: it is not started from here

    def __init__(self, options: Mapping[str, str]) -> None:
        for name in options:
            if name not in OPTIONS:
                raise EngineError(f"no option {name!r}; this engine has {', '.join(OPTIONS)}")
        if not options.get("url"):
            raise EngineError("url: where is the server? --url http://localhost:8000")
        if (dialect := options.get("dialect", "auto")) not in ("auto", *DIALECTS):
            raise EngineError(f"dialect: {dialect!r} is none of auto, {', '.join(DIALECTS)}")
        self.options, self.mapped = options, _mapping(options.get("adapters", ""))
        self.client = Client(
            options["url"],
            _key(options.get("api-key-env")),
            _positive("timeout", options.get("timeout", "120")),
            int(_positive("retries", options.get("retries", "2"), integer=True, least=0)),
        )
        self.top_k = None if options.get("top-k") == "all" else _count("top-k", options)
        self.max_rank = _count("max-rank", options)
        self.clients = _count("clients", options) or 0

    def start(self, settings: Settings) -> None:
        """Find out which server it is and what it can show, with requests for one token."""
        self.settings = settings
        self.vocab = load_config(settings.model).vocab_size
        self.names: dict[str, str] = {}  # our name of an adapter -> its served name
        listed = models(self.client)
        kind = self.options.get("dialect", "auto")
        name = self._detect(listed) if kind == "auto" else kind
        self.dialect = DIALECTS[name](self.client, self.options.get("model-name", ""), listed, self.vocab)
        if settings.prefix_caching and not self.dialect.caches():
            raise EngineError("prefix caching was asked for, and the server does not say that it has it")
        self.dynamic = not self.mapped and self.dialect.loads()
        self.width, prompt_rows, readout = self._readout()
        self.capabilities = replace(
            CAPABILITIES,
            readout=readout,
            top_k=self.width if readout == "top" else 0,
            prompt_rows=prompt_rows and not settings.prefix_caching,  # they would be computed anew
            mixed=self.dialect.mixed,
            features=self.dialect.features,
            operations=self._operations(),
            max_rank=self.max_rank,
        )

    def load(self, name: str, folder: Path) -> None:
        """Take the served name that the user gave for it; without one, make the server load the folder."""
        if name in self.mapped:
            self.names[name] = self.dialect.find(self.mapped[name])
            return
        served = self.dialect.served()
        if not self.dynamic:
            raise EngineError(
                f"adapter {name!r}: the server loads none while it runs; say which of its own this is: "
                f"--adapter-name {name}=SERVED. It has {_list(served)}"
            )
        if name in served and name not in self.names:
            raise EngineError(
                f"adapter {name!r}: the server has one of that name, from {served[name] or 'an unknown place'}; "
                f"if that is the one: --adapter-name {name}={name}"
            )
        self.names[name] = self.dialect.load(name, folder, name in self.names)

    def unload(self, name: str) -> None:
        """Forget the name; the server unloads the adapter if it loaded it for us."""
        if name not in self.names:
            raise EngineError(f"no adapter {name!r} is loaded")
        served = self.names.pop(name)
        if name not in self.mapped:
            self.dialect.unload(served)

    def run(self, requests: Sequence[EngineRequest]) -> list[EngineResponse]:
        """Send all at once. A response that is not valid has an error and, in `raw`, what came."""
        for request in requests:
            self._adapters(request)
        if not requests:
            return []
        count = min(len(requests), self.settings.max_requests)
        beside = strangers(self.clients - count, requests, list(self.names), self._run)
        with beside, ThreadPoolExecutor(count) as threads:
            return list(threads.map(self._run, requests))

    def reset(self) -> None:
        """Unload what the server loaded for us; empty its prefix cache if it lets us."""
        for name in list(self.names):
            self.unload(name)
        self.dialect.flush()

    def versions(self) -> dict[str, str]:
        """Return the server's kind and version, and its address: it does not say what it runs on."""
        return {"server": f"{self.dialect.name} {self.dialect.version()}", "url": self.client.url}

    def close(self) -> None:
        """Leave the server as it was before start(), if it is still there."""
        for name in list(getattr(self, "names", {})):
            try:
                self.unload(name)
            except EngineError:
                continue  # a server that is gone has forgotten it

    def _run(self, request: EngineRequest) -> EngineResponse:
        try:
            return self._complete(request, self.width, self.capabilities.prompt_rows)
        except BadResponse as error:
            if isinstance(error, Refused) and error.status in FORBIDDEN:
                raise
            return EngineResponse(error=str(error), raw=self.client.clean(error.raw))

    def _complete(self, request: EngineRequest, width: int, prompt_rows: bool) -> EngineResponse:
        adapters, cached = self._adapters(request), self.settings.prefix_caching
        completion = self.dialect.complete(request, adapters, width, prompt_rows, cached)
        return checked(completion, request, width, self.vocab, self.dialect.floor)

    def _adapters(self, request: EngineRequest) -> dict[str, float]:
        """The request's adapters: served name -> weight."""
        if request.adapter_weights and "sums" not in self.dialect.features:
            raise EngineError(f"{self.dialect.name} has no sums of adapters")
        weights: dict[str, float] = {}
        for name, weight in request.adapters:
            if name not in self.names:
                raise EngineError(f"no adapter {name!r} is loaded")
            weights[self.names[name]] = weights.get(self.names[name], 0.0) + weight
        return weights

    def _detect(self, listed: list[dict[str, Any]]) -> str:
        owners = {str(model.get("owned_by")) for model in listed}
        kinds = {OWNERS[owner] for owner in owners if owner in OWNERS}
        if len(kinds) != 1:
            raise EngineError(
                f"dialect: cannot tell what {self.client.url} is from the owners of its models ({_list(owners)}); "
                f"say which of {', '.join(DIALECTS)} it is like"
            )
        return kinds.pop()

    def _widths(self) -> list[int]:
        """How many tokens of a row to request, in turn: the first number that is granted is kept."""
        if "top-k" in self.options:
            return [min(self.top_k or self.vocab, self.vocab)]
        return [*([self.vocab] if self.vocab <= WHOLE else []), *(width for width in WIDTHS if width < self.vocab)]

    def _readout(self) -> tuple[int, bool, str]:
        """The most that the server shows: tokens per row, whether the prompt's rows too, and one of READOUTS.

        A response that is wrong in any other way than showing less is no reason to request less: that is a finding."""
        refusal = ""
        for width in self._widths():
            for prompt_rows in (True, False):
                try:
                    completion = self.dialect.complete(PROBE, {}, width, prompt_rows, False)
                except Refused as error:
                    if error.status in FORBIDDEN or error.status >= 500:
                        raise
                    refusal = str(error)
                    continue
                if completion.logits and all(completion.logits):
                    self._check_vocabulary([range(len(row)) for row in completion.logits], complete=True)
                    return self.vocab, True, "logits"
                if completion.rows and (shown := min(len(row) for row in completion.rows)):
                    self._check_vocabulary(completion.rows, complete=width == self.vocab)
                    readout = "logprobs" if shown == self.vocab else "top"
                    return min(width, shown), len(completion.rows) == len(PROBE.prompt_ids), readout
        try:
            self._complete(PROBE, 0, False)
        except Refused as error:
            raise EngineError(f"the server answers no request: {refusal or error}") from None
        return 0, False, "text"

    def _check_vocabulary(self, rows: Sequence[Collection[int]], complete: bool) -> None:
        """Refuse a server of another vocabulary. complete: all tokens were requested.

        Then the first n without a gap are the vocabulary of a smaller model; what a server that shows less picks out
        is never that (5 tokens or more)."""
        for row in rows:
            size = max(row) + 1
            if size > self.vocab or (complete and 5 <= size == len(row) < self.vocab):
                raise EngineError(
                    f"another vocabulary: {self.client.url} has {'' if complete else 'at least '}{size} tokens, "
                    f"{self.settings.model} {self.vocab}"
                )

    def _operations(self) -> frozenset[str]:
        loading = ("load", "unload", "reload") if self.dynamic else ()
        return frozenset((*loading, *(("prefix_cache",) if self.dialect.caches() else ())))


def _mapping(text: str) -> dict[str, str]:
    """NAME=SERVED,NAME=SERVED as a dict."""
    pairs: dict[str, str] = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        name, equals, served = item.partition("=")
        if not (name and equals and served):
            raise EngineError(f"adapters: {item!r} is not NAME=SERVED")
        if name in pairs:
            raise EngineError(f"adapters: {name!r} is both {pairs[name]!r} and {served!r}")
        pairs[name] = served
    return pairs


def _key(variable: str | None) -> str:
    """The key; "" without one. The variable's name is not repeated in the error: it may be the key itself."""
    if variable is not None and variable not in os.environ:
        raise EngineError("api-key-env: there is no such environment variable")
    return os.environ.get(variable or "OPENAI_API_KEY", "")


def _count(name: str, options: Mapping[str, str]) -> int | None:
    return int(_positive(name, options[name], integer=True)) if name in options else None


def _positive(name: str, text: str, integer: bool = False, least: float = 1e-9) -> float:
    try:
        value: float = int(text) if integer else float(text)
    except ValueError:
        value = math.nan
    if not least <= value < math.inf:
        kind = "a whole number" if integer else "a number of seconds"
        raise EngineError(f"{name}: {text!r} is not {kind} of that kind")
    return value


def _list(names: Collection[str]) -> str:
    return ", ".join(sorted(names)) or "none"
