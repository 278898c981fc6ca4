"""Campaigns on a Ray cluster of two nodes on this machine. Skipped where Ray is not (pip install 'loracle[ray]')."""

import json
import os
import threading
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="Ray is missing: pip install 'loracle[ray]'")

from dying_engine import Dying
from support.testbed import small_testbed

from refimpl.cli import main
from refimpl.engines.ours import Ours
from refimpl.errors import LoracleError
from refimpl.oracle.bugs.registry import find_bug
from refimpl.oracle.campaign import Campaign
from refimpl.oracle.observer import Observer
from refimpl.oracle.ray_cluster import Engines, connected
from refimpl.oracle.reports.result import CampaignSettings, Result

MEMORY = 100_000_000  # bytes of Ray's store on each node


@pytest.fixture(scope="module")
def cluster():
    """A head with two processors, for the numbers, and a node with three, on one of which an engine may run."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 2,
            "object_store_memory": MEMORY,
            "include_dashboard": False,
            "resources": {"seat": 1},
        },
    )
    cluster.add_node(num_cpus=2, object_store_memory=MEMORY, resources={"seat": 1})
    yield cluster
    cluster.shutdown()


def run(make, folder: Path, cluster=None, engines: int = 2, observer: Observer | None = None, cases: int = 6) -> Result:
    """A campaign in this process, or on the cluster with an engine on each node: each takes its node's only seat."""
    settings = {"cases": cases, "sequences": 2, "below": False}
    if cluster is None:
        return Campaign(make, small_testbed(), CampaignSettings(**settings), folder).run()
    remote = Engines(engines, {"seat": 1, "CPU": 0.5})
    with connected(cluster.address, remote, str(Path(__file__).parent)):
        plan = CampaignSettings(**settings, engines=engines, ray=True)
        return Campaign(remote.on_the_cluster(make), small_testbed(), plan, folder, observer).run()


def numbers(result: Result) -> list:
    """All that a campaign measured: the name of each case, its verdict, and every error ratio."""
    return [(one.case.name, one.verdict, [ratios.ratio.tobytes() for ratios in one.ratios]) for one in result.played]


def rslora_ignored() -> Ours:
    """A wrong engine."""
    return Ours(find_bug("rslora_ignored", small_testbed()).make)


def test_the_result_is_that_of_one_process(cluster, tmp_path):
    alone, spread = run(rslora_ignored, tmp_path / "alone"), run(rslora_ignored, tmp_path / "spread", cluster)
    assert alone.verdict == spread.verdict == "fail"
    assert numbers(alone) == numbers(spread)
    assert alone.explanation.cause.sentence == spread.explanation.cause.sentence
    assert alone.explanation.smallest == spread.explanation.smallest


def test_an_engine_whose_process_ends_is_made_anew_and_its_case_is_asked_again(cluster, tmp_path):
    marker = tmp_path / "marker"
    lossy = run(lambda: Dying(marker), tmp_path / "lossy", cluster)
    assert marker.exists(), "no engine's process ended"
    assert lossy.verdict == "pass"
    assert numbers(lossy) == numbers(run(Ours, tmp_path / "alone"))


def test_a_node_that_is_lost_takes_nothing_with_it(cluster, tmp_path):
    extra = cluster.add_node(num_cpus=2, object_store_memory=MEMORY, resources={"seat": 1})
    removed = threading.Event()

    class Removing(Observer):
        def advance(self, stage, done, total):
            if stage == "asking" and done == 2 and not removed.is_set():
                cluster.remove_node(extra, allow_graceful=False)
                removed.set()

    result = run(Ours, tmp_path / "lossy", cluster, engines=3, observer=Removing())
    assert removed.is_set()
    assert result.verdict == "pass"
    assert numbers(result) == numbers(run(Ours, tmp_path / "alone"))


def test_the_command_prints_the_same_with_ray(cluster, capsys):
    printed = []
    for extra in ([], ["--ray", cluster.address, "--ray-engines", "2"]):
        arguments = ["--engine", "blind:c132", "--model", "random", "--cases", "2", "--sequences", "0", "--no-power"]
        code = main(["check", *arguments, "--json", *extra])
        report = json.loads(capsys.readouterr().out)
        printed.append((code, {key: value for key, value in report.items() if key not in ("repro", "seconds")}))
    assert printed[0] == printed[1]
    assert printed[0][0] == 1


def test_a_cluster_that_is_too_small_is_refused_in_one_line(cluster):
    with (
        pytest.raises(LoracleError, match=r"--ray: 1 engine\(s\) need 1 GPU; the cluster has 0"),
        connected(cluster.address, Engines(1, {"GPU": 1})),
    ):
        pass
    with (
        pytest.raises(LoracleError, match=r"need 4 CPU, and the numbers one; the cluster has 4"),
        connected(cluster.address, Engines(4)),
    ):
        pass
