"""What must hold of a recording of TensorRT-LLM, whoever made it: hypothesis draws the batches and the pairs.

tests/engines/test_tensorrt_llm.py asks it of real recordings, tests/record/test_replay.py of a stand-in's.
"""

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from refimpl.oracle.recordings.tensorrt_llm_recording import RELATIONS, Recording, Replay, kernel_results

# There are fewer batches and pairs than this: each is drawn sooner or later. A name is as simple as another.
drawn = settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], phases=[Phase.generate])


def every_batch_is_right(replay: Replay) -> None:
    """Every answer lies within the noise of ours, and the adapters move it by more than that."""

    batches = {b.name: b for b in replay.answered}

    @drawn
    @given(name=st.sampled_from(sorted(batches)))
    def one(name: str) -> None:
        batch = batches[name]
        for measured, judged in zip(replay.measured(batch), replay.verdicts(batch), strict=True):
            where = f"{batch.name}, request {measured.index} ({measured.adapter or 'base'})"
            assert judged.verdict == "pass", f"{where}: {judged.verdict}, {judged.why}"
            assert measured.matters > replay.limits.ratio, f"{where}: its adapter does not show in it"

    one()


def the_batch_does_not_matter(replay: Replay) -> None:
    """Two answers to one request, from two batches or along two paths, are the same but for rounding."""

    pairs = {pair.name: pair for what in RELATIONS for pair in replay.related(what)}

    @drawn
    @given(name=st.sampled_from(sorted(pairs)))
    def one(name: str) -> None:
        judged = replay.compare(pairs[name])
        assert judged.verdict == "pass", f"{name}: {judged.verdict}, {judged.why}"

    one()


def the_kernel_is_right(recording: Recording) -> None:
    """The LoRA product alone is within the bound that its numbers have; it may refuse what breaks the rule of ranks."""
    results = kernel_results(recording)
    assert results
    for r in results:
        where = f"{r.part}/{r.name}"
        assert r.may_fail or not r.error, f"{where}: {r.error}"
        assert r.error or r.worst <= 1, f"{where}: {r.worst:.3g} x the bound"


def what_is_missing(recording: Recording) -> list[str]:
    """A line for every part that did not do all that it should, with the words of whatever went wrong."""
    found = []
    for name, part in recording.summary["parts"].items():
        if part["status"] != "done" or part["errors"]:
            why = part["error"] or "; ".join(f"{e['at']}: {e['error']}" for e in part["errors"])
            found.append(f"{name}: {part['status']}, {' '.join(why.split())[:300]}")
    return found
