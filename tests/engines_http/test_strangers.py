"""Strangers beside a batch: a server that mixes up simultaneous requests is right alone, and wrong among clients."""

import threading
import time
from collections import Counter
from pathlib import Path

from fake_server import Fake

from refimpl import tiny
from refimpl.engines import openai_http
from refimpl.engines.interface import EngineRequest, Settings
from refimpl.engines.servers.strangers import strangers

PIRATE, BARD = tiny.VOICES["pirate"], tiny.VOICES["bard"]
REQUESTS = [EngineRequest((0, 17, 300 + i), name, 2) for i, name in enumerate(("a", "b", None))]


class Mixing(Fake):
    """Keeps what it computes by the prompt alone: while somebody is served, the first one's adapter is everyone's."""

    def __init__(self) -> None:
        super().__init__("vllm", {"served-a": PIRATE, "served-b": BARD})
        self.guard, self.first, self.served = threading.Lock(), {}, Counter()

    def numbers(self, prompt, adapter, n, adapter_weights=()):
        """Those of the first who asks this prompt at the time."""
        key = tuple(prompt)
        with self.guard:
            first = self.first.setdefault(key, adapter)
            self.served[key] += 1
        try:
            time.sleep(0.01)
            return super().numbers(prompt, first, n, adapter_weights)
        finally:
            with self.guard:
                self.served[key] -= 1
                if not self.served[key]:
                    del self.first[key]


def answers(server: Fake, clients: str) -> list[tuple[int, ...]]:
    """What three requests of different prompts get, with so many requests in flight."""
    options = {"url": server.url, "adapters": "a=served-a,b=served-b", "clients": clients}
    engine = openai_http.OpenAIHTTP(options)
    engine.start(Settings(tiny.base_path()))
    for name in ("a", "b"):
        engine.load(name, Path("unused"))
    responses = engine.run(REQUESTS)
    engine.close()
    assert [one.error for one in responses] == [""] * len(REQUESTS)
    return [tuple(one.logprobs[-1].argsort()[-5:]) for one in responses]


def test_a_server_that_mixes_up_clients_is_right_without_them_and_wrong_among_them():
    with Mixing() as server:
        alone = answers(server, "1")
        assert all(answers(server, "1") == alone for _ in range(3))
        assert any(answers(server, "9") != alone for _ in range(20))
    with Fake("vllm", {"served-a": PIRATE, "served-b": BARD}) as server:
        assert answers(server, "9") == alone == answers(server, "1")


def test_a_deployment_is_left_as_it_was():
    with Fake("vllm", {"served-a": PIRATE, "served-b": BARD}) as server:
        answers(server, "9")
        assert not [path for path, _, _ in server.requests if "lora" in path]
        engine = openai_http.OpenAIHTTP({"url": server.url, "adapters": "a=served-a"})
        engine.start(Settings(tiny.base_path()))
        assert not {"load", "unload", "reload"} & engine.capabilities.operations


def test_strangers_ask_the_same_prompts_for_others():
    asked: list[EngineRequest] = []
    with strangers(3, REQUESTS, ["a", "b"], asked.append):
        while len(asked) < 9:
            time.sleep(0.001)
    own = {request.prompt_ids: request.adapter for request in REQUESTS}
    assert all(one.adapter != own[one.prompt_ids] for one in asked)
    assert {one.prompt_ids for one in asked} == set(own)
    assert {one.adapter for one in asked if one.prompt_ids == REQUESTS[0].prompt_ids} == {None, "b"}
    count = len(asked)
    time.sleep(0.02)
    assert len(asked) == count, "a stranger asked after the end"
    with strangers(0, REQUESTS, [], asked.append), strangers(3, [], [], asked.append):
        pass
    assert len(asked) == count
