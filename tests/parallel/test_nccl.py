"""Ranks on GPUs, as far as it can be tried without one: CuPy's double, and a stand-in for NCCL that reads the same
addresses and counts that NCCL would get."""

import ctypes
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ranks import every_kind, mixed_batch, model_of, small
from support.compare import assert_equal_to_rounding
from support.cupy_double import installed
from support.device_testbed import map_arrays

from refimpl import logits
from refimpl.arrays import to_device
from refimpl.errors import DeviceError
from refimpl.parallel.backend import parallel
from refimpl.parallel.layout import Layout
from refimpl.parallel.nccl import Nccl, choose_gpu
from refimpl.parallel.shards import shard_model
from refimpl.parallel.threads import Thread, on_threads

NUMBERS = {"float32": 7, "float64": 8}  # nccl.h: ncclFloat32, ncclFloat64


class NcclCommunicator:
    """cupy.cuda.nccl.NcclCommunicator, whose ranks are threads. Its name is how they find each other."""

    threads: dict[int, Thread]

    def __init__(self, ndev: int, commId: tuple, rank: int) -> None:
        assert commId == ("name of rank 0",) and ndev == len(self.threads)
        self.thread = self.threads[rank]

    def allReduce(self, send: int, receive: int, count: int, kind: int, op: int, stream: int) -> None:
        assert op == 0 and send != receive
        at(receive, count, kind)[:] = self.thread.all_reduce(at(send, count, kind))

    def allGather(self, send: int, receive: int, count: int, kind: int, stream: int) -> None:
        at(receive, count * self.thread.size, kind)[:] = self.thread.all_gather(at(send, count, kind))


def at(address: int, count: int, kind: int) -> np.ndarray:
    """The numbers that lie there."""
    number = {7: ctypes.c_float, 8: ctypes.c_double}[kind]
    return np.ctypeslib.as_array((number * count).from_address(address))


class Control:
    """What Nccl needs of Mpi, among threads."""

    def __init__(self, thread: Thread) -> None:
        self.rank, self.size, self.thread = thread.rank, thread.size, thread

    def exchange(self, value: Any) -> list:
        return self.thread._exchange(value, list)

    def broadcast(self, value: Any) -> Any:
        return self.exchange(value)[0]


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    with installed(14) as module:
        monkeypatch.setattr(module.cuda, "get_current_stream", lambda: SimpleNamespace(ptr=0))
        cuda = ModuleType("cupy.cuda")
        cuda.nccl = SimpleNamespace(
            NCCL_FLOAT32=NUMBERS["float32"],
            NCCL_FLOAT64=NUMBERS["float64"],
            NCCL_SUM=0,
            get_unique_id=lambda: ("name of rank 0",),
            NcclCommunicator=NcclCommunicator,
        )
        monkeypatch.setitem(sys.modules, "cupy.cuda", cuda)
        yield module


@pytest.mark.parametrize("fully_sharded", [False, True])
def test_ranks_on_gpus_are_one(cupy: ModuleType, fully_sharded: bool) -> None:
    """Every kind of adapter: partial sums, widths that differ, and DoRA's norms go from device to device."""
    model = model_of(small())
    requests = mixed_batch(model, every_kind(model))
    expected = logits(model, requests)
    parts = {
        name: map_arrays(getattr(model, name), lambda x: to_device(x, "cuda"))
        for name in ("embed_tokens", "layers", "norm", "lm_head")
    }
    on_device = replace(model, **parts, device="cuda")

    def one(thread: Thread) -> list[np.ndarray]:
        thread.all_gather(np.zeros(1))
        NcclCommunicator.threads[thread.rank] = thread
        thread.all_gather(np.zeros(1))
        layout = Layout(model.config, thread.rank, thread.size)
        part = shard_model(on_device, layout)
        return logits(part, requests, parallel(layout, part, Nccl(Control(thread)), fully_sharded=fully_sharded))

    NcclCommunicator.threads = {}
    for rows in on_threads(2, one):
        for actual, other in zip(rows, expected, strict=True):
            assert_equal_to_rounding(actual, other)


def test_a_rank_without_a_gpu_is_refused(cupy: ModuleType) -> None:
    with pytest.raises(DeviceError, match="rank 1 has no GPU: there are 1"):
        choose_gpu(1)


def test_without_nccl_it_says_so(cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy.cuda", ModuleType("cupy.cuda"))
    with pytest.raises(DeviceError, match="this CuPy has none"):
        Nccl(SimpleNamespace(rank=0, size=2))
