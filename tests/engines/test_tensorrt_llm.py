"""TensorRT-LLM: live where it is installed, else over every recording in tests/recordings and $LORACLE_RECORDINGS."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support import replays

from refimpl.engines import tensorrt_llm
from refimpl.engines.interface import Engine
from refimpl.oracle.cases import testbed as testbeds
from refimpl.oracle.cases.batches import draw_batch
from refimpl.oracle.cases.case import play, prepare
from refimpl.oracle.noise.ensemble import ensemble
from refimpl.oracle.noise.measure import ErrorRatios, measure
from refimpl.oracle.noise.verdict import Thresholds, judge, learn_thresholds
from refimpl.oracle.recordings.tensorrt_llm_recording import Replay, read_recording

HERE = Path(__file__).parent.parent / "recordings"
NONE = (
    "no recording of TensorRT-LLM in tests/recordings or $LORACLE_RECORDINGS, and no package tensorrt_llm: "
    "`loracle record --engine tensorrt_llm --out DIR` makes what a GPU machine needs (tests/recordings/README.md)"
)


def recordings() -> list[Path]:
    """Folders with a summary.json, one level down."""
    folders = [HERE, *map(Path, filter(None, os.environ.get("LORACLE_RECORDINGS", "").split(os.pathsep)))]
    return sorted(
        file.parent for folder in folders for file in [*folder.glob("summary.json"), *folder.glob("*/summary.json")]
    )


FOUND = recordings()
LIVE = not tensorrt_llm.entry().missing


@lru_cache
def replay_of(folder: Path) -> Replay:
    """Measured once."""
    return Replay(read_recording(folder))


WHY = "no recording: the engine itself was run" if LIVE else NONE
SKIPPED = pytest.param(None, marks=pytest.mark.skip(reason=WHY))
FOLDERS = [pytest.param(folder, id=folder.name) for folder in FOUND] or [SKIPPED]


@pytest.mark.parametrize("folder", FOLDERS)
class TestRecorded:
    def test_every_batch_is_right(self, folder: Path) -> None:
        replays.every_batch_is_right(replay_of(folder))

    def test_the_batch_does_not_matter(self, folder: Path) -> None:
        replays.the_batch_does_not_matter(replay_of(folder))

    def test_the_kernel_is_right(self, folder: Path) -> None:
        replays.the_kernel_is_right(replay_of(folder).recording)

    def test_nothing_is_missing(self, folder: Path) -> None:
        if missing := replays.what_is_missing(replay_of(folder).recording):
            pytest.skip(f"{folder.name} is only a part: {' | '.join(missing)}")

    def test_it_is_of_tensorrt_llm(self, folder: Path) -> None:
        version = replay_of(folder).recording.summary["machine"].get("tensorrt_llm", "")
        assert version and "stand" not in version, f"{folder}: made by {version or 'nobody knows what'}"


@dataclass
class Live:
    """A running engine, its testbed, and the thresholds of its verdicts."""

    engine: Engine
    testbed: testbeds.Testbed
    thresholds: Thresholds

    def ratios(self, seed: int) -> list[ErrorRatios]:
        """Draw a batch, run it, and measure its errors."""
        rng = np.random.default_rng(seed)
        case = draw_batch(self.testbed, self.engine.capabilities, rng, f"batch {seed}")
        return measure(case, play(self.engine, case, self.testbed), self.testbed, ensemble(self.testbed.dtype))[0]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Start the engine in the model's own type; yield it with its testbed, and thresholds from eight batches."""
    engine = tensorrt_llm.make({})
    testbed = testbeds.build("tiny", "bfloat16", 0, tmp_path_factory.mktemp("testbed"), engine.capabilities)
    engine.start(testbeds.settings(testbed))
    prepare(engine, testbed)
    started = Live(engine, testbed, learn_thresholds([]))
    started.thresholds = learn_thresholds([ratios for seed in range(8) for ratios in started.ratios(seed)])
    yield started
    engine.close()


if LIVE:

    def test_live(live: Live) -> None:
        @settings(phases=[Phase.generate])  # a seed is as simple as another
        @given(seed=st.integers(0, 2**32 - 1))
        def one(seed: int) -> None:
            for ratios in live.ratios(seed):
                verdict = judge(ratios, live.thresholds)
                assert verdict.verdict != "fail", f"request {ratios.index} ({ratios.adapter or 'base'}): {verdict.why}"

        one()
