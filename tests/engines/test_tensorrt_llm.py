"""TensorRT-LLM: live where its package is, else over every recording in tests/recordings and $LORACLE_RECORDINGS."""

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
from refimpl.oracle.cases import testbed as stages
from refimpl.oracle.cases.case import draw_batch, play, prepare
from refimpl.oracle.noise.ensemble import ensemble
from refimpl.oracle.noise.measure import ErrorRatios, measure
from refimpl.oracle.noise.verdict import Thresholds, judge, limits
from refimpl.oracle.recordings.tensorrt_llm_recording import Replay, read_recording

HERE = Path(__file__).parent.parent / "recordings"
NONE = (
    "no recording of TensorRT-LLM in tests/recordings or $LORACLE_RECORDINGS, and no package tensorrt_llm: "
    "`loracle record --engine tensorrt_llm --out DIR` makes what a GPU machine needs (tests/recordings/README.md)"
)


def recordings() -> list[Path]:
    """Folders with a summary.json, one level down."""
    places = [HERE, *map(Path, filter(None, os.environ.get("LORACLE_RECORDINGS", "").split(os.pathsep)))]
    return sorted(
        file.parent for place in places for file in [*place.glob("summary.json"), *place.glob("*/summary.json")]
    )


FOUND = recordings()
LIVE = not tensorrt_llm.entry().missing


@lru_cache
def replay_of(folder: Path) -> Replay:
    """Measured once."""
    return Replay(read_recording(folder))


WHY = "no recording: the engine itself was asked" if LIVE else NONE
FOLDERS = [pytest.param(f, id=f.name) for f in FOUND] or [pytest.param(None, marks=pytest.mark.skip(reason=WHY))]


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
    """What the engine is asked with, and what honest looks like there."""

    engine: Engine
    testbed: stages.Testbed
    limits: Thresholds

    def measured(self, seed: int) -> list[ErrorRatios]:
        """One batch, drawn, asked and measured."""
        rng = np.random.default_rng(seed)
        case = draw_batch(self.testbed, self.engine.capabilities, rng, f"batch {seed}")
        return measure(case, play(self.engine, case, self.testbed), self.testbed, ensemble(self.testbed.dtype))[0]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """The engine itself, with the stage that it plays on, in the model's own type, and what honest looks like there."""
    engine = tensorrt_llm.make({})
    testbed = stages.build("tiny", "bfloat16", 0, tmp_path_factory.mktemp("stage"), engine.capabilities)
    engine.start(stages.settings(testbed))
    prepare(engine, testbed)
    found = Live(engine, testbed, limits([]))
    found.limits = limits([m for seed in range(8) for m in found.measured(seed)])
    yield found
    engine.close()


if LIVE:

    def test_live(live: Live) -> None:
        @settings(phases=[Phase.generate])  # a seed is as simple as another
        @given(seed=st.integers(0, 2**32 - 1))
        def one(seed: int) -> None:
            for m in live.measured(seed):
                judged = judge(m, live.limits)
                assert judged.verdict != "fail", f"request {m.index} ({m.adapter or 'base'}): {judged.why}"

        one()
