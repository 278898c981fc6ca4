"""Any OpenAI-compatible server as an engine: vLLM, llama-server, SGLang, trtllm-serve.

    loracle check --engine openai_http --url http://localhost:8000 --adapter-name pirate=served-pirate

Which kind of server it is, what it can show and whether it loads adapters is found out by asking it. Prompts go out as
token ids, all requests of a batch at once, each in a thread of its own; what comes back is checked (servers/reading.py)
before it is an answer. An adapter that the server is to load goes out as the path of its folder, so that both must see
the same disk. Options, all of them text:

url            http://host:port, or with /v1 behind
model-name     what the server calls the base, if it has several
adapters       NAME=SERVED,...: adapters that the server has already, by what it calls them
dialect        vllm, llama_server, sglang, trtllm; auto asks
timeout        seconds that one try may take (120)
retries        after a broken connection, a 429 or a 5xx (2)
top-k          tokens per row, or all; by default all of up to 40,000, else the 1,000 greatest, or what is granted
max-rank       of adapters, as the server was started; none of them tells
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
from ..config import load_config
from .interface import Capabilities, Engine, EngineError, EngineRequest, EngineResponse, Entry, Settings
from .servers.client import BadAnswer, Client, Refused
from .servers.dialect import Dialect, models
from .servers.llama_server import LlamaServer
from .servers.reading import answer
from .servers.sglang import SGLang
from .servers.trtllm import TensorRTLLM
from .servers.vllm import VLLM

DIALECTS: dict[str, type[Dialect]] = {d.name: d for d in (VLLM, LlamaServer, SGLang, TensorRTLLM)}
OWNERS = {"vllm": "vllm", "llamacpp": "llama_server", "sglang": "sglang", "tensorrt_llm": "trtllm"}  # in /v1/models
OPTIONS = ("url", "model-name", "adapters", "dialect", "timeout", "retries", "top-k", "max-rank", "api-key-env")
WHOLE = 40_000  # vocabularies above this are hundreds of megabytes of JSON per request
WIDTHS = (1000, 20, 5, 1)  # 20 is what vLLM grants unless it is told otherwise, 5 is OpenAI's
FORBIDDEN = (401, 403)
PROBE = EngineRequest((0, 1))

# Before a server was asked: what it may turn out to show.
CAPABILITIES = Capabilities(readout="logprobs", dtypes=tuple(DTYPES))


def entry() -> Entry:
    """Nothing has to be installed for it."""
    what = "any OpenAI-compatible server: vLLM, llama-server, SGLang, trtllm-serve; --url"
    return Entry("openai_http", what, CAPABILITIES, missing="")


def make(options: Mapping[str, str]) -> Engine:
    """Not yet asked anything. EngineError for an option that is unknown or no good."""
    return OpenAIHTTP(options)


class OpenAIHTTP:
    """An Engine (interface.py)."""

    capabilities = CAPABILITIES

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
            int(_positive("retries", options.get("retries", "2"), whole=True, least=0)),
        )
        given = {n: options[n] for n in ("top-k", "max-rank") if n in options and (n, options[n]) != ("top-k", "all")}
        counts = {n: int(_positive(n, text, whole=True)) for n, text in given.items()}
        self.top_k, self.max_rank = counts.get("top-k"), counts.get("max-rank")

    def start(self, settings: Settings) -> None:
        """Find out what is there, and ask it for a token."""
        self.settings = settings
        self.vocab = load_config(settings.model).vocab_size
        self.names: dict[str, str] = {}  # ours -> the server's
        there = models(self.client)
        kind = self.options.get("dialect", "auto")
        name = self._detect(there) if kind == "auto" else kind
        self.dialect = DIALECTS[name](self.client, self.options.get("model-name", ""), there, self.vocab)
        if settings.prefix_caching and not self.dialect.caches():
            raise EngineError("prefix caching was asked for, and the server does not say that it has it")
        self.dynamic = self.dialect.loads()
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
        """Under what the user says that the server calls it, else by telling the server to load it."""
        if name in self.mapped:
            self.names[name] = self.dialect.find(self.mapped[name])
            return
        there = self.dialect.served()
        if not self.dynamic:
            raise EngineError(
                f"adapter {name!r}: the server loads none while it runs; say which of its own this is: "
                f"--adapter-name {name}=SERVED. It has {_list(there)}"
            )
        if name in there and name not in self.names:
            raise EngineError(
                f"adapter {name!r}: the server has one of that name, from {there[name] or 'an unknown place'}; "
                f"if that is the one: --adapter-name {name}={name}"
            )
        self.names[name] = self.dialect.load(name, folder, name in self.names)

    def unload(self, name: str) -> None:
        """The server forgets those that we had it load; of the others only we do."""
        if name not in self.names:
            raise EngineError(f"no adapter {name!r} is loaded")
        served = self.names.pop(name)
        if name not in self.mapped:
            self.dialect.unload(served)

    def run(self, asks: Sequence[EngineRequest]) -> list[EngineResponse]:
        """All at once. An answer that is none has an error and, in `raw`, what came."""
        for ask in asks:
            self._adapters(ask)
        if not asks:
            return []
        with ThreadPoolExecutor(min(len(asks), self.settings.max_requests)) as threads:
            return list(threads.map(self._run, asks))

    def reset(self) -> None:
        """Unload what we had the server load; empty its prefix cache if it lets us."""
        for name in list(self.names):
            self.unload(name)
        self.dialect.flush()

    def versions(self) -> dict[str, str]:
        """Of the server. What it runs on it does not say."""
        return {"server": f"{self.dialect.name} {self.dialect.version()}", "url": self.client.url}

    def close(self) -> None:
        """Leave the server as it was found, if it is still there. One that was never started has nothing to undo."""
        for name in list(getattr(self, "names", {})):
            try:
                self.unload(name)
            except EngineError:
                continue  # a server that is gone has forgotten it

    def _run(self, ask: EngineRequest) -> EngineResponse:
        try:
            return self._ask(ask, self.width, self.capabilities.prompt_rows)
        except BadAnswer as error:
            if isinstance(error, Refused) and error.status in FORBIDDEN:
                raise
            return EngineResponse(error=str(error), raw=self.client.clean(error.raw))

    def _ask(self, ask: EngineRequest, width: int, prompt_rows: bool) -> EngineResponse:
        said = self.dialect.ask(ask, self._adapters(ask), width, prompt_rows, self.settings.prefix_caching)
        return answer(said, ask, width, self.vocab, self.dialect.floor)

    def _adapters(self, ask: EngineRequest) -> dict[str, float]:
        """What the server calls those that the request wants -> weight."""
        if ask.adapter_weights and "sums" not in self.dialect.features:
            raise EngineError(f"{self.dialect.name} has no sums of adapters")
        weights: dict[str, float] = {}
        for name, weight in ask.adapter_weights or (() if ask.adapter is None else ((ask.adapter, 1.0),)):
            if name not in self.names:
                raise EngineError(f"no adapter {name!r} is loaded")
            weights[self.names[name]] = weights.get(self.names[name], 0.0) + weight
        return weights

    def _detect(self, there: list[dict[str, Any]]) -> str:
        owners = {str(m.get("owned_by")) for m in there}
        kinds = {OWNERS[owner] for owner in owners if owner in OWNERS}
        if len(kinds) != 1:
            raise EngineError(
                f"dialect: cannot tell what {self.client.url} is from the owners of its models ({_list(owners)}); "
                f"say which of {', '.join(DIALECTS)} it is like"
            )
        return kinds.pop()

    def _widths(self) -> list[int]:
        """How many tokens of a row to ask for: the first that is granted is taken."""
        if "top-k" in self.options:
            return [min(self.top_k or self.vocab, self.vocab)]
        return [*([self.vocab] if self.vocab <= WHOLE else []), *(width for width in WIDTHS if width < self.vocab)]

    def _readout(self) -> tuple[int, bool, str]:
        """The most that the server shows when it is asked: tokens per row, rows of the prompt too?, one of READOUTS.

        An answer that is wrong in any other way than showing less is no reason to ask for less: that is a finding."""
        refusal = ""
        for width in self._widths():
            for prompt_rows in (True, False):
                try:
                    said = self.dialect.ask(PROBE, {}, width, prompt_rows, False)
                except Refused as error:
                    if error.status in FORBIDDEN or error.status >= 500:
                        raise
                    refusal = str(error)
                    continue
                if said.logits and all(said.logits):
                    self._same_vocabulary([range(len(row)) for row in said.logits], whole=True)
                    return self.vocab, True, "logits"
                if said.rows and (shown := min(len(row) for row in said.rows)):
                    self._same_vocabulary(said.rows, whole=width == self.vocab)
                    readout = "logprobs" if shown == self.vocab else "top"
                    return min(width, shown), len(said.rows) == len(PROBE.prompt_ids), readout
        try:
            self._ask(PROBE, 0, False)
        except Refused as error:
            raise EngineError(f"the server answers no request: {refusal or error}") from None
        return 0, False, "text"

    def _same_vocabulary(self, rows: Sequence[Collection[int]], whole: bool) -> None:
        """whole: all tokens were asked for. The first n without a gap are the vocabulary of a smaller model then; what
        a server that shows less picks out is never that (5 tokens or more)."""
        for row in rows:
            size = max(row) + 1
            if size > self.vocab or (whole and 5 <= size == len(row) < self.vocab):
                raise EngineError(
                    f"another vocabulary: {self.client.url} has {'' if whole else 'at least '}{size} tokens, "
                    f"{self.settings.model} {self.vocab}"
                )

    def _operations(self) -> frozenset[str]:
        found = {"load", "unload", "reload"} if self.dynamic else set()
        return frozenset(found | ({"prefix_cache"} if self.dialect.caches() else set()))


def _mapping(text: str) -> dict[str, str]:
    """NAME=SERVED,NAME=SERVED -> what stands for what."""
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
    """The key; "" without one. What was given as a variable's name is not repeated: it may be the key itself."""
    if variable is not None and variable not in os.environ:
        raise EngineError("api-key-env: there is no such environment variable")
    return os.environ.get(variable or "OPENAI_API_KEY", "")


def _positive(name: str, text: str, whole: bool = False, least: float = 1e-9) -> float:
    try:
        value: float = int(text) if whole else float(text)
    except ValueError:
        value = math.nan
    if not least <= value < math.inf:
        raise EngineError(
            f"{name}: {text!r} is not {'a whole number' if whole else 'a number of seconds'} of that kind"
        )
    return value


def _list(names: Collection[str]) -> str:
    return ", ".join(sorted(names)) or "none"
