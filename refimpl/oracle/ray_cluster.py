"""A campaign on a Ray cluster: engines are actors with resources of their own, the numbers are tasks.

    engines = Engines(4, {"CPU": 1, "GPU": 1})
    with connected("ray://head:10001", engines):
        check(engines.on_the_cluster(make), ..., CampaignSettings(engines=4, ray=True))

An actor holds one engine; `RemoteEngine` is that engine here, and everything that asks engines asks this one. An actor
that is lost with its machine is made anew, and the case that it was in is asked again (engine_driver.py); a task that
is lost runs again elsewhere. The folders of the base and of the adapters must be seen from every machine.

Source of the names: Ray's documentation of actors, tasks and their fault tolerance (`max_restarts`, `max_retries`).
"""

import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from ..engines.interface import Engine, EngineError, EngineLost, EngineRequest, EngineResponse, Settings
from ..errors import LoracleError
from .cases.testbed import Testbed
from .diagnosis import workers
from .reports.result import CampaignSettings

SECONDS = 5.0  # to wait for a cluster's address; larger: a wrong one is found out later
PLACE = 20.0  # seconds to wait until a machine has the engine's resources free; larger: a lost one is missed longer
RETRIES = 3  # of a task whose machine is lost; larger: a cluster that loses machines all the time is found out later


@dataclass(frozen=True)
class Engines:
    """How many engines are asked side by side, and what Ray reserves for each: {"CPU": 4, "GPU": 1}."""

    count: int = 1
    resources: Mapping[str, float] = field(default_factory=dict)

    @property
    def processors(self) -> float:
        """Those of one engine."""
        return self.resources.get("CPU", 1.0)

    def on_the_cluster(self, make: Callable[[], Engine]) -> Callable[[], Engine]:
        """Return what makes the engine in an actor instead of here."""
        return lambda: RemoteEngine(make, {"CPU": self.processors, **self.resources})

    def check_fit(self) -> None:
        """LoracleError where the cluster has not as much for each engine, and a processor for the numbers."""
        import ray

        total = ray.cluster_resources()
        needed = {"CPU": self.processors, **self.resources}
        for name, amount in needed.items():
            available = total.get(name, 0.0)
            numbers = 1.0 if name == "CPU" else 0.0
            if amount * self.count + numbers > available:
                beside = ", and the numbers one" if numbers else ""
                raise LoracleError(
                    f"--ray: {self.count} engine(s) need {amount * self.count:g} {name}{beside}; "
                    f"the cluster has {available:g}"
                )


@contextmanager
def connected(address: str, engines: Engines, module_folder: str = "") -> Iterator[None]:
    """Connect to the cluster at an address, "local" for one on this machine alone; disconnect at the end.

    module_folder: of the engine's own file, which the cluster imports. LoracleError where Ray or the cluster is not,
    or is too small."""
    try:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported home
        import ray
    except ImportError:
        raise LoracleError("--ray needs Ray: pip install 'loracle[ray]'") from None
    folders = [module_folder, str(Path(__file__).parents[2]), os.getcwd(), *sys.path]
    environment = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(filter(None, folders)))}
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        environment[name] = os.environ.get(name, "1")  # a task is given one processor
    # A cluster of one machine has processors for its engines beside those that make the numbers.
    processors = (os.cpu_count() or 1) + engines.count * engines.processors
    where = {"num_cpus": int(processors), "include_dashboard": False} if address == "local" else {"address": address}
    if address != "local":
        check_reachable(address)
    try:
        ray.init(runtime_env={"env_vars": environment}, log_to_driver=False, logging_level="ERROR", **where)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise LoracleError(f"--ray {address}: no cluster answers ({str(error).strip().splitlines()[0]})") from None
    try:
        engines.check_fit()
        yield
    finally:
        ray.shutdown()


def check_reachable(address: str) -> None:
    """LoracleError unless somebody listens at HOST:PORT or ray://HOST:PORT: Ray itself tries for minutes."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        if not parts.hostname or parts.port is None:
            raise LoracleError(f"--ray {address}: expected local, HOST:PORT or ray://HOST:PORT")
        socket.create_connection((parts.hostname, parts.port), SECONDS).close()
    except (OSError, ValueError) as error:
        raise LoracleError(f"--ray {address}: no cluster answers ({error})") from None


class EngineHolder:
    """The body of an actor: one engine, and whatever is called of it."""

    def __init__(self, make: Callable[[], Engine]) -> None:
        self.engine = make()

    def exists(self) -> bool:
        """Return True, which is an answer as soon as the actor has its place."""
        return True

    def call(self, method: str, *args: Any) -> tuple[Any, Any]:
        """Return what the method returns, and what the engine says by then that it can."""
        return getattr(self.engine, method)(*args), self.engine.capabilities


class RemoteEngine:
    """An Engine (interface.py) whose work is done by an actor. The actor exists from start() to close()."""

    def __init__(self, make: Callable[[], Engine], resources: Mapping[str, float]) -> None:
        engine = make()  # it is not started: it only says what it can
        self.make, self.resources = make, dict(resources)
        self.capabilities = engine.capabilities
        self.new_for_each_batch = getattr(engine, "new_for_each_batch", False)
        self.about = getattr(engine, "about", None)
        self._actor: Any = None

    def start(self, settings: Settings) -> None:
        """Reserve the resources, wherever they are free, and load the model there."""
        import ray
        from ray.exceptions import GetTimeoutError, RayActorError

        options = dict(self.resources)
        named = {"num_cpus": options.pop("CPU"), "num_gpus": options.pop("GPU", 0), "resources": options}
        self._actor = ray.remote(**named)(EngineHolder).remote(self.make)
        try:
            ray.get(self._actor.exists.remote(), timeout=PLACE)
        except (GetTimeoutError, RayActorError) as error:
            ray.kill(self._actor)
            self._actor = None
            raise EngineLost(f"no machine of the cluster has place for the engine ({type(error).__name__})") from None
        self._call("start", settings)

    def load(self, name: str, folder: Path) -> None:
        """See Engine."""
        self._call("load", name, folder)

    def unload(self, name: str) -> None:
        """See Engine."""
        self._call("unload", name)

    def run(self, requests: Sequence[EngineRequest]) -> list[EngineResponse]:
        """See Engine."""
        return self._call("run", list(requests))

    def traced(self, requests: Sequence[EngineRequest]) -> list[EngineResponse]:
        """Serve them with their intermediates, where the engine shows any (Capabilities.trace)."""
        return self._call("traced", list(requests))

    def reset(self) -> None:
        """See Engine."""
        self._call("reset")

    def versions(self) -> dict[str, str]:
        """See Engine."""
        return self._call("versions")

    def close(self) -> None:
        """Close the engine, and give its resources back."""
        if self._actor is None:
            return
        import ray

        try:
            self._call("close")
        except EngineLost:
            pass  # a lost engine holds nothing
        finally:
            ray.kill(self._actor)
            self._actor = None

    def _call(self, method: str, *args: Any) -> Any:
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        if self._actor is None:
            raise EngineError("the engine is not started")
        try:
            value, self.capabilities = ray.get(self._actor.call.remote(method, *args))
        except RayTaskError as error:  # raised by the engine itself
            raise error.cause from None
        except RayActorError as error:
            raise EngineLost(f"the engine's machine or process was lost ({type(error).__name__})") from None
        return value


class Tasks(Executor):
    """An executor whose workers are Ray tasks; each process of the cluster gets the testbed once."""

    def __init__(self, testbed: Testbed) -> None:
        import ray

        self._testbed, self._key = ray.put(testbed), uuid4().hex
        self._task = ray.remote(max_retries=RETRIES)(_run_with)

    def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Future:
        """Run it somewhere; return a Future."""
        return self._task.remote(self._key, [self._testbed], fn, args, kwargs).future()


def executor(testbed: Testbed, settings: CampaignSettings) -> AbstractContextManager[Executor]:
    """Return what makes a campaign's numbers: tasks of the cluster, or processes of this machine."""
    return nullcontext(Tasks(testbed)) if settings.ray else workers.pool(testbed, settings.jobs)


_adopted = ""  # the key of the testbed that this process has


def _run_with(key: str, testbed: Sequence[Any], fn: Callable, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run a task. testbed: a list of one reference, for Ray fetches what stands in an argument itself each time."""
    import ray

    global _adopted
    if key != _adopted:
        workers.adopt(ray.get(testbed[0]))
        _adopted = key
    return fn(*args, **kwargs)
