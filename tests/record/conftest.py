"""Cases over a small drawn model; and one whole recording of the embedded one, by the stand-in."""

from pathlib import Path

import pytest
from recording import loracle

from refimpl.oracle.recordings.tensorrt_llm_cases import write_cases


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `loracle record` writes them, for a model that takes no time."""
    folder = tmp_path_factory.mktemp("record") / "cases"
    write_cases(folder, "random", "float16", seed=3)
    return folder


@pytest.fixture(scope="session")
def recording_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a whole recording of the embedded model, as if TensorRT-LLM 1.2 were here."""
    out = tmp_path_factory.mktemp("recording") / "stand-in"
    log = out.parent / "undocumented"
    done = loracle("record", "--engine", "tensorrt_llm", "--out", str(out), "--json", release="1.2", log=str(log))
    assert done.returncode == 0, done.stdout + done.stderr
    assert not log.exists(), log.read_text()  # it used nothing that no release documents
    return out / "recording"
