"""What must hold of a recording of TensorRT-LLM, whoever made it: hypothesis draws the batches and the pairs.

tests/engines/test_tensorrt_llm.py asks it of real recordings, tests/record/test_replay.py of a stand-in's.
"""

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from refimpl.oracle.recordings.tensorrt_llm_kernel import kernel_results
from refimpl.oracle.recordings.tensorrt_llm_recording import RELATIONS, Recording, Replay

# There are fewer batches and pairs than this: each is drawn sooner or later. A name is as simple as another.
settings_of_draws = settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], phases=[Phase.generate])


def every_batch_is_right(replay: Replay) -> None:
    """Every response lies within the noise of ours, and the adapters move it by more than that."""

    batches = {batch.name: batch for batch in replay.served}

    @settings_of_draws
    @given(name=st.sampled_from(sorted(batches)))
    def one(name: str) -> None:
        batch = batches[name]
        for ratios, verdict in zip(replay.ratios(batch), replay.verdicts(batch), strict=True):
            where = f"{batch.name}, request {ratios.index} ({ratios.adapter or 'base'})"
            assert verdict.verdict == "pass", f"{where}: {verdict.verdict}, {verdict.why}"
            assert ratios.adapter_effect > replay.thresholds.ratio, f"{where}: its adapter does not show in it"

    one()


def the_batch_does_not_matter(replay: Replay) -> None:
    """Two responses to one request, from two batches or along two paths, are the same but for rounding."""

    pairs = {pair.name: pair for what in RELATIONS for pair in replay.related(what)}

    @settings_of_draws
    @given(name=st.sampled_from(sorted(pairs)))
    def one(name: str) -> None:
        verdict = replay.compare(pairs[name])
        assert verdict.verdict == "pass", f"{name}: {verdict.verdict}, {verdict.why}"

    one()


def the_kernel_is_right(recording: Recording) -> None:
    """The LoRA product alone is within the bound that its numbers have; it may refuse what breaks the rule of ranks."""
    results = kernel_results(recording)
    assert results
    for result in results:
        where = f"{result.part}/{result.name}"
        assert result.may_fail or not result.error, f"{where}: {result.error}"
        assert result.error or result.worst <= 1, f"{where}: {result.worst:.3g} x the bound"


def what_is_missing(recording: Recording) -> list[str]:
    """Return a line for every part that did not do all that it should, with the errors that it reports."""
    lines = []
    for name, part in recording.summary["parts"].items():
        if part["status"] != "done" or part["errors"]:
            why = part["error"] or "; ".join(f"{entry['at']}: {entry['error']}" for entry in part["errors"])
            lines.append(f"{name}: {part['status']}, {' '.join(why.split())[:300]}")
    return lines
