"""Traces: drawn as their distribution says, the same for the same seed; written, read back, refused line by line."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.bench.arrivals import Arrival, Workload, draw, popularity, read_arrivals, write_arrivals
from refimpl.errors import DataError, RequestError

MANY = Workload(requests=20_000, rate=50.0)


def gaps(workload: Workload) -> np.ndarray:
    return np.diff([0.0, *(arrival.arrival for arrival in draw(workload, 3))])


@pytest.mark.parametrize(("process", "cv"), [("poisson", 1.0), ("gamma", 0.25), ("gamma", 1.0), ("gamma", 3.0)])
def test_gaps_have_the_mean_and_the_variation_that_were_given(process: str, cv: float) -> None:
    times = gaps(replace(MANY, process=process, cv=cv))
    assert times.min() >= 0
    # Five standard errors: cv / sqrt(n) of a mean; a wide one of a standard deviation, whose error is the kurtosis'.
    assert times.mean() * MANY.rate == pytest.approx(1, abs=5 * cv / np.sqrt(len(times)))
    assert times.std() / times.mean() == pytest.approx(cv, rel=0.1)


def test_gamma_with_a_variation_of_one_is_poisson() -> None:
    assert draw(replace(MANY, process="gamma"), 3) == draw(MANY, 3)


def test_gaps_of_a_poisson_process_are_exponential() -> None:
    """Beyond mean and variation: the share of gaps that are longer than t is exp(-rate t)."""
    times = gaps(MANY)
    for t in (0.2, 1.0, 2.5):
        assert (times * MANY.rate > t).mean() == pytest.approx(np.exp(-t), abs=5 * 0.5 / np.sqrt(len(times)))


def test_popularity_is_that_of_the_law() -> None:
    assert popularity("uniform", 4).tolist() == [0.25] * 4
    assert popularity("zipf", 3) == pytest.approx(np.array([6, 3, 2]) / 11)
    for kind in ("uniform", "zipf"):
        arrivals = draw(replace(MANY, popularity=kind), 5)
        shares = np.bincount([arrival.adapter for arrival in arrivals], minlength=5) / len(arrivals)
        assert shares == pytest.approx(popularity(kind, 5), abs=5 * 0.5 / np.sqrt(len(arrivals)))


@given(seed=st.integers(0, 2**31), adapters=st.integers(1, 50), requests=st.integers(1, 20))
def test_the_same_seed_draws_the_same_and_the_number_of_adapters_changes_nothing_else(
    seed: int, adapters: int, requests: int
) -> None:
    workload = Workload(requests=requests, process="gamma", cv=2.0, prompt_tokens=(3, 3), max_new_tokens=(1, 9))
    arrivals = draw(workload, adapters, seed)
    assert arrivals == draw(workload, adapters, seed)
    assert all(0 <= arrival.adapter < adapters for arrival in arrivals)
    assert all(arrival.prompt == 3 and 1 <= arrival.max_new_tokens <= 9 for arrival in arrivals)
    others = draw(workload, adapters + 7, seed)
    assert [replace(x, adapter=0) for x in arrivals] == [replace(x, adapter=0) for x in others]
    faster = draw(replace(workload, rate=4 * workload.rate), adapters, seed)
    assert [x.arrival for x in arrivals] == pytest.approx([4 * x.arrival for x in faster])
    assert draw(workload, adapters, seed + 1) != arrivals


def test_prompts_are_the_same_for_the_same_seed() -> None:
    arrival = Arrival(0.0, None, 6, 1)
    ids = arrival.prompt_ids(40, 3)
    assert len(ids) == arrival.prompt_tokens == 6 and all(0 <= i < 40 for i in ids)
    assert ids == arrival.prompt_ids(40, 3) != arrival.prompt_ids(40, 4)
    assert Arrival(0.0, None, (4, 2), 1).prompt_ids(40, 3) == [4, 2]


TRACES = st.lists(
    st.builds(
        Arrival,
        st.floats(0, 1e6),
        st.none() | st.integers(0, 5000),
        st.integers(1, 99) | st.lists(st.integers(0, 300), min_size=1, max_size=4).map(tuple),
        st.integers(1, 99),
    ),
    min_size=1,
    max_size=8,
).map(lambda arrivals: sorted(arrivals, key=lambda arrival: arrival.arrival))


@given(TRACES)
def test_what_was_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, arrivals: list[Arrival]) -> None:
    file = tmp_path_factory.mktemp("trace") / "trace.jsonl"
    write_arrivals(file, arrivals)
    assert file.read_text().count("\n") == len(arrivals)
    assert read_arrivals(file) == arrivals


GOOD = '{"arrival": 1.5, "adapter": 0, "prompt_tokens": 4, "max_new_tokens": 2}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "expected an object"),
        ("{", "not JSON"),
        (GOOD.replace("1.5", "-1"), "arrival is -1: it must be a number of seconds"),
        (GOOD.replace("1.5", "NaN"), "arrival is nan"),
        (GOOD.replace("1.5", "true"), "arrival is True"),
        (GOOD.replace('"arrival": 1.5, ', ""), "arrival is 'missing'"),
        (GOOD.replace("1.5", "1.4"), "arrival 1.4 is before 1.5, that of the line above"),
        (GOOD.replace('"adapter": 0, ', ""), "adapter is 'missing': it must be a number from 0, or null"),
        (GOOD.replace('"adapter": 0', '"adapter": "pirate"'), "adapter is 'pirate'"),
        (GOOD.replace('"adapter": 0', '"adapter": -1'), "adapter is -1"),
        (GOOD.replace('"prompt_tokens": 4', '"prompt_tokens": 0'), "prompt_tokens is 0: it must be an integer"),
        (GOOD.replace('"prompt_tokens": 4, ', ""), "give one of prompt_tokens and prompt_ids"),
        (GOOD.replace("}", ', "prompt_ids": [1]}'), "give one of prompt_tokens and prompt_ids"),
        (GOOD.replace('"prompt_tokens": 4', '"prompt_ids": []'), "prompt_ids must be a list of token ids"),
        (GOOD.replace('"prompt_tokens": 4', '"prompt_ids": [1, 2.5]'), "prompt_ids must be a list of token ids"),
        (GOOD.replace('"max_new_tokens": 2', '"max_new_tokens": 2.0'), "max_new_tokens is 2.0"),
        (GOOD.replace("max_new_tokens", "max_tokens"), "unknown key 'max_tokens'"),
    ],
)
def test_a_line_that_is_not_a_request_is_named(line: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(f"{GOOD}\n\n{line}\n")
    with pytest.raises(DataError) as error:
        read_arrivals(file)
    assert str(error.value).startswith(f"{file}:3: ") and message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_trace_without_requests_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text("\n")
    with pytest.raises(DataError, match="holds no request"):
        read_arrivals(file)
    with pytest.raises(DataError, match="cannot be read"):
        read_arrivals(tmp_path / "absent.jsonl")
    with pytest.raises(RequestError, match="No such file"):
        write_arrivals(tmp_path / "absent" / "trace.jsonl", draw(Workload(requests=1), 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"process": "weibull"}, "process 'weibull': expected poisson or gamma"),
        ({"popularity": "equal"}, "popularity 'equal': expected zipf or uniform"),
        ({"rate": 0.0}, "rate 0.0: it must be a number above 0"),
        ({"rate": float("nan")}, "rate nan"),
        ({"requests": 0}, "requests 0"),
        ({"process": "gamma", "cv": -1.0}, "cv -1.0"),
        ({"cv": 2.0}, "cv 2.0: that of poisson is 1"),
        ({"prompt_tokens": (5, 4)}, "prompt_tokens from 5 to 4"),
        ({"max_new_tokens": (0, 4)}, "max_new_tokens from 0 to 4"),
    ],
)
def test_a_workload_that_cannot_be_drawn_is_refused(options: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Workload(**options)
