"""Many ways to compute a token at once, and a request followed in few passes: both against the definition, which
computes the whole request once for every sequence of mistakes."""

import functools
import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support.testbed import small_testbed

from refimpl import NUMPY, Precision
from refimpl.adapter_slots import AdapterSlots
from refimpl.arrays import Array, to_host
from refimpl.config import Module
from refimpl.engines.interface import Computed
from refimpl.engines.ours import CAPABILITIES, Ours
from refimpl.model import forward, whole_prompts
from refimpl.oracle.cases.batches import draw_batch
from refimpl.oracle.cases.testbed import settings as engine_settings
from refimpl.oracle.causes.asked import Asked
from refimpl.oracle.causes.at_token import fitting_of, with_one_more
from refimpl.oracle.causes.bound import bound_weights
from refimpl.oracle.causes.described import Described, change_of
from refimpl.oracle.causes.follow import Followed, follow
from refimpl.oracle.causes.kept import OF_ANOTHER
from refimpl.oracle.causes.mistakes import Mistake, mistakes, tried
from refimpl.oracle.causes.mix_up import EXACT, NOBODY, Source
from refimpl.oracle.causes.pairs import pairs
from refimpl.oracle.causes.rule import Rule
from refimpl.oracle.causes.sources import THE_BASE, WHICHEVER, sources_of
from refimpl.oracle.causes.states import State, states_of
from refimpl.oracle.causes.suspect import Suspect
from refimpl.oracle.causes.traced import Request, Traced
from refimpl.oracle.causes.trial import presence
from refimpl.oracle.causes.watch import Watch
from refimpl.oracle.engine_driver import EngineDriver
from refimpl.oracle.failures import Failures
from refimpl.oracle.noise.ensemble import ensemble
from refimpl.oracle.noise.measure import measure
from refimpl.oracle.reports.result import PlayedCase
from refimpl.oracle.verdicts import judge_all
from refimpl.plans import LoraMapping
from refimpl.request import Request as ModelRequest

pytestmark = pytest.mark.filterwarnings("ignore::refimpl.errors.AdapterWarning")

LIMIT = 3.0
NOISE = 0.5  # noise units
MOST = 5  # tokens of a request: the definition takes 2 ** tokens passes
FAMILIES = ("own", "outputs reversed", "delta of the layer after", "instead: another adapter")


@functools.cache
def all_requests() -> list[Request]:
    """Requests with an adapter."""
    return [one for one in all_answers() if one.as_it_came.suspect.key is not None]


@functools.cache
def all_answers() -> list[Request]:
    """Requests as a right engine answered them: of the base and of single adapters, of every row a logit."""
    testbed, members = small_testbed(), ensemble("float32")
    driver = EngineDriver(lambda: Ours(lambda: NUMPY, Precision("model", "float32")), testbed, Path(tempfile.mkdtemp()))
    played = []
    for i in range(6):
        case = draw_batch(testbed, CAPABILITIES, np.random.default_rng([2, i]), f"batch {i}")
        ratios, _ = measure(case, driver.exchanges(case, engine_settings(testbed)), testbed, members)
        played.append(PlayedCase(case, engine_settings(testbed), ratios))
    asked = Failures(driver, testbed, members, judge_all(played), played).asked_loudly
    return [Request(one) for one in asked if one.is_single]


def requests() -> list[Request]:
    """Short ones."""
    return [one for one in all_requests() if 2 <= one.tokens <= MOST][:6]


@pytest.mark.parametrize(
    ("other", "words"), [(THE_BASE, "its own delta is missing"), ("made-1", "(of made-1 in 1 requests)")]
)
def test_the_delta_of_nobody_is_a_delta_that_is_missing(other: str, words: str) -> None:
    request = next(one for one in requests() if one.as_it_came.suspect.key != other)
    mistake = Mistake(f"instead: {WHICHEVER}", "", 1.0, 1.0)
    followed = Followed(tuple(frozenset([(f"instead: {other}",)]) for _ in range(request.tokens)))
    one = Described(mistake, f"the delta of {WHICHEVER}", WHICHEVER, Rule((), (), 0.0, 0, 1), request.tokens, 0, 0.0)
    change = change_of(one, {request: followed}, 0, {})
    assert change.what.endswith(words) and (change.source == "own") == (other == THE_BASE)


def base_request() -> Request:
    """One of the base."""
    return next(one for one in all_answers() if not one.as_it_came.suspect.exchange.adapters and one.tokens >= 2)


def whole(suspect: Suspect, made: Sequence[Sequence[tuple[Source, Array, float]]]) -> Array:
    """The definition: logits of a request in whose token t the mistakes made[t] are made, [tokens, vocab]."""
    model, p = suspect.testbed.exact, suspect.testbed.exact.precision(EXACT)
    batch, cache, adapters = whole_prompts(model, [suspect.request], NUMPY, p, every_row=True)
    watch, index = Watch(len(made)), {module: i for i, module in enumerate(model.config.modules())}
    watched = watch.over(NUMPY)

    def lora_delta(
        y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision
    ) -> None:
        watched.lora_delta(y, x, module, adapters, mapping, p)
        for t, some in enumerate(made):
            here = [one for one in some if one[1][index[module]]]
            others = [source.of_other for source, *_ in here if source.of_other is not None]
            for source, _, times in here:
                point = suspect.point(module, x, watch)
                if others and source.of_other is None:
                    point = point.as_if(
                        suspect.key or NOBODY, others[0]
                    )  # what else is wrong is so of whoever stands there
                delta = source.delta(point)
                if delta is not None:
                    y[t, : delta.shape[1]] += times * delta[t]

    ops = replace(watched, lora_delta=lora_delta)
    return to_host(forward(model, batch, cache, adapters.slots, ops, p))


def answered(request: Request, logits: Array, seed: int) -> Request:
    """The same request, if an engine had answered it with these logits and with noise."""
    suspect = request.as_it_came.suspect
    raw = suspect.raw
    noise = NOISE * np.random.default_rng(seed).standard_normal(raw.error.shape) * raw.unit[:, None]
    error = raw.view.of(logits[raw.rows, : raw.vocab]) - raw.exact + noise
    return Request(Asked(replace(suspect, raw=replace(raw, error=error), _batches={}), ("", 0, 0), {}, True))


def made_by(request: Request, cause: Sequence[Mistake], states: Sequence[State]) -> Array:
    """Logits of a request whose tokens are in these states."""
    sources = {source.key: source for _, source in request.sources}
    return whole(
        request.as_it_came.suspect,
        [
            [
                (sources[key], request.walk.at(one.modules), one.coefficient or 0.0)
                for one, key in zip(cause, state, strict=True)
                if key
            ]
            for state in states
        ],
    )


def survivors(request: Request, cause: Sequence[Mistake]) -> tuple[list[tuple[State, ...]], int]:
    """The definition: all sequences of states that leave noise in every row, and how far any of them goes."""
    lines: list[tuple[State, ...]] = [()]
    states, nothing = states_of(cause, request.families), ("",) * len(cause)
    for t in range(request.tokens):
        longer = [(*line, state) for line in lines for state in states]
        rest = (nothing,) * (request.tokens - t - 1)
        shown = np.array([t])
        lines, before = [], lines
        for line in longer:
            logits = made_by(request, cause, (*line, *rest))
            if request.walk.ratios(shown, logits[shown])[0] < LIMIT:
                lines.append(line)
        if not lines:
            return before, t
    return lines, request.tokens


@st.composite
def causes(draw: st.DrawFn, request: Request) -> list[Mistake]:
    regions = [region.words for region in request.as_it_came.suspect.module_regions]
    families = [name for name in FAMILIES if name in request.families]
    count = draw(st.integers(1, 2))
    chosen = draw(st.lists(st.sampled_from(families), min_size=count, max_size=count, unique=True))
    times = {name: draw(st.sampled_from([-1.0, 1.0])) if name == "own" else 1.0 for name in chosen}
    return [Mistake(name, draw(st.sampled_from(regions)), times[name], 1.0) for name in chosen]


@given(st.data())
@settings(deadline=None, max_examples=10, suppress_health_check=list(HealthCheck))
def test_copies_of_one_token_are_the_whole_request(data: st.DataObject) -> None:
    """What a mistake leaves of a token, of a batch of copies behind one prefix, is what the whole request gives: so
    what was made is found, and whatever is found does leave noise."""
    request = data.draw(st.sampled_from(requests()))
    (one,) = data.draw(causes(request).filter(lambda cause: len(cause) == 1))
    t = data.draw(st.integers(0, request.tokens - 1))
    key = data.draw(st.sampled_from([source.key for source in request.families[one.family]]))
    states: list[State] = [("",)] * t + [(key,)] + [("",)] * (request.tokens - t - 1)
    logits = made_by(request, [one], states)
    wrong = answered(request, logits, t)
    (right,) = wrong.follow([()], LIMIT)
    assume(right.dead == t and right.line is not None)
    assert right.line is not None
    found = mistakes(wrong.walk, right.line.blocks, 1, wrong.sources, LIMIT)
    assert found
    for other in found[:20]:
        left = [
            wrong.walk.ratios(
                np.array([t]), made_by(request, [other], [*states[:t], (source.key,), *states[t + 1 :]])[[t]]
            )
            for source in request.families[other.family]
        ]
        assert min(left) < LIMIT
    assert tried(wrong.walk, right.line.blocks, wrong.sources, [one], LIMIT) == [one]


@given(st.data())
@settings(deadline=None, max_examples=10, suppress_health_check=list(HealthCheck))
def test_few_passes_find_what_all_sequences_do(data: st.DataObject) -> None:
    """A request whose tokens were computed in any states is followed to its end in one of the sequences that leave
    noise; along another cause it ends where all sequences do."""
    request = data.draw(st.sampled_from(requests()))
    cause = data.draw(causes(request))
    possible = states_of(cause, request.families)
    truth = data.draw(st.lists(st.sampled_from(possible), min_size=request.tokens, max_size=request.tokens))
    wrong = answered(request, made_by(request, cause, truth), 1)
    (followed,) = follow(wrong.walk, [cause], wrong.families, LIMIT)
    lines, _ = survivors(wrong, cause)
    assert tuple(truth) in lines
    assert followed.dead is None and len(followed.possible) == request.tokens
    assert any(all(state in some for state, some in zip(line, followed.possible, strict=True)) for line in lines)
    for i in range(len(cause)):  # what it is sure of is so in every sequence
        for t, seen in enumerate(followed.present(i)):
            assert seen < 0 or all(
                bool(line[t][i]) == bool(seen) for line in lines if agrees(line, followed.possible, t)
            )
    other = [replace(one, modules=data.draw(st.sampled_from(["o_proj", "v_proj"]))) for one in cause[:1]]
    (short,) = follow(wrong.walk, [other], wrong.families, LIMIT)
    _, end = survivors(wrong, other)
    assert (request.tokens if short.dead is None else short.dead) == end


@given(st.data())
@settings(deadline=None, max_examples=10, suppress_health_check=list(HealthCheck))
def test_where_a_cause_ends_the_next_mistake_is_seen_whoever_was_followed_since(data: st.DataObject) -> None:
    """Requests share the blocks of a cache: what others left there is not what stands before a wrong token."""
    request = data.draw(st.sampled_from(requests()))
    first, second = Mistake("own", "", -1.0, 1.0), Mistake("outputs reversed", "", 1.0, 1.0)
    t = data.draw(st.integers(1, request.tokens - 1))
    rest = [("", "")] * (request.tokens - t - 1)
    states = [("own", "")] * t + [("", "outputs reversed"), *rest]
    wrong = answered(request, made_by(request, [first, second], states), 1)
    traced = Traced((first,), {}).with_others([wrong], LIMIT)
    assume(traced.followed[wrong].dead == t)
    wrong.follow([(Mistake("instead: another adapter", "", 1.0, 1.0),), (replace(first, coefficient=1.0),)], LIMIT)
    wrong.follow([()], LIMIT)
    assert fitting_of(wrong, traced, [second], LIMIT) == [second]


def test_a_later_mistake_that_does_nothing_to_a_row_may_have_been_made() -> None:
    """What explained a request before another mistake was thought of says of that one what its rows say."""
    first, second = Mistake("outputs reversed", "", 1.0, 1.0), Mistake("own", "lm_head", -1.0, 1.0)
    for request in requests():
        wrong = answered(request, made_by(request, [first], [("outputs reversed",)] * request.tokens), 1)
        traced = with_one_more(Traced((first,), {}).with_others([wrong], LIMIT), second, LIMIT)
        assert (traced.followed[wrong].present(1) == 0).all()
        seen = traced.as_far_as_visible(LIMIT).followed[wrong]
        assert seen.dead is None
        has_any = bool(wrong.walk.at("lm_head") @ presence(wrong.walk, (), wrong.tokens, wrong.families["own"])[0])
        assert (seen.present(1) == (0 if has_any else -1)).all()


def test_what_scales_the_own_delta_scales_what_else_is_wrong_with_it() -> None:
    """Reversed, and at the square of its scale: the definition scales the reversed one."""
    compared = 0
    for request in requests():
        suspect, key = request.as_it_came.suspect, request.as_it_came.suspect.key
        cause = [Mistake("outputs reversed", "v_proj", 1.0, 1.0), Mistake("scale squared", "v_proj", 1.0, 1.0)]
        if key is None or any(one.family not in request.families for one in cause):
            continue
        model, weights = suspect.testbed.exact, bound_weights(suspect.testbed)[key]
        p = model.precision(EXACT)
        batch, cache, adapters = whole_prompts(model, [suspect.request], NUMPY, p, every_row=True)

        def lora_delta(
            y: Array, x: Array, module: Module, slots: AdapterSlots, mapping: LoraMapping, p: Precision
        ) -> None:
            delta = np.zeros_like(y)
            NUMPY.lora_delta(delta, x, module, slots, mapping, p)
            lora = weights.get(module)  # noqa: B023
            y += delta[:, ::-1] * lora.scale if lora is not None and module[1] == "v_proj" else delta

        ops = replace(NUMPY, lora_delta=lora_delta)
        logits = to_host(forward(model, batch, cache, adapters.slots, ops, p))
        states: list[State] = [("outputs reversed", "scale squared")] * request.tokens
        wrong = answered(request, logits, 1)
        (followed,) = wrong.follow([cause], LIMIT)
        assert followed.dead is None and states[0] in followed.possible[-1]
        compared += 1
    assert compared


def test_what_is_missing_twice_is_missing_once() -> None:
    """A delta without its bias, all of which is missing: no more than that is."""
    compared = 0
    for request in [one for one in all_requests() if one.tokens <= 24]:
        if "own bias" in request.families and presence(request.walk, (), 1, request.families["own bias"]).any():
            cause = [Mistake("own bias", "", -1.0, 1.0), Mistake("own", "", -1.0, 1.0)]
            wrong = answered(request, made_by(request, cause[1:], [("own",)] * request.tokens), 1)
            (followed,) = wrong.follow([tuple(cause)], LIMIT)
            assert followed.dead is None and all(("own bias", "own") in states for states in followed.possible)
            compared += 1
    assert compared


def test_what_else_is_wrong_with_the_adapter_that_stands_for_the_base() -> None:
    """A request of the base gets an adapter's delta, which has its outputs reversed as everybody's."""
    request = base_request()
    key = next(iter(request.as_it_came.suspect.testbed.adapters))
    cause = [Mistake("outputs reversed", "", 1.0, 1.0), Mistake("instead: another adapter", "", 1.0, 1.0)]
    states: list[State] = [("outputs reversed", f"instead: {key}")] * request.tokens
    logits = made_by(request, cause, states)
    assert np.abs(logits - made_by(request, cause[1:], [(f"instead: {key}",)] * request.tokens)).max() > 1e-3
    wrong = answered(request, logits, 1)
    traced = Traced((cause[0],), {}).with_others([wrong], LIMIT)
    assert traced.followed[wrong].dead == 0
    assert cause[1] in fitting_of(wrong, traced, [cause[1]], LIMIT)
    (followed,) = wrong.follow([tuple(cause)], LIMIT)
    assert followed.dead is None and all(state in some for state, some in zip(states, followed.possible, strict=True))


def shown_from(request: Request, first: int) -> Request:
    """The same request of an engine that shows no rows before one."""
    raw = request.as_it_came.suspect.raw
    view = replace(raw.view, values=raw.view.values[first:], shown=raw.view.shown[first:])
    rows = slice(raw.rows.start + first, raw.rows.stop)
    cut = {name: getattr(raw, name)[first:] for name in ("exact", "logits", "error", "unit")}
    raw = replace(raw, view=view, rows=rows, honest=raw.honest[:, first:], **cut)
    return Request(replace(request.as_it_came, suspect=replace(request.as_it_came.suspect, raw=raw, _batches={})))


@pytest.mark.parametrize("is_made", [False, True])
def test_of_tokens_that_nobody_sees_nothing_is_known(is_made: bool) -> None:
    """What the last layer adds behind its attention is in no other token's row: whether a mistake was made there is
    unknown."""
    testbed = all_requests()[0].as_it_came.suspect.testbed
    last_layer, behind = testbed.exact.config.num_hidden_layers - 1, ("o_proj", "gate_proj", "up_proj", "down_proj")
    request, name = next(
        (one, name)
        for one, name in itertools.product(all_requests(), behind)
        if one.tokens > 2 and (last_layer, name) in testbed.wide[str(one.as_it_came.suspect.key)].lora
    )
    tokens, mistake = request.tokens, Mistake("own", f"layers.{last_layer}.{name}", -1.0, 1.0)
    logits = made_by(request, [mistake], [("own" if is_made else "",)] * tokens)
    wrong = shown_from(answered(request, logits, 1), tokens - 1)
    (followed,) = wrong.follow([(mistake,)], LIMIT)
    assert followed.dead is None
    assert followed.present(0).tolist() == [-1] * (tokens - 1) + [int(is_made)]


def agrees(line: Sequence[State], possible: Sequence[frozenset[State]], t: int) -> bool:
    """Is a sequence, up to a token, one that was followed?"""
    return all(state in some for state, some in zip(line[:t], possible, strict=False))


def test_pairs_leave_noise_together() -> None:
    """What is found from the sums of what each does alone does so in the whole request."""
    request = max(requests(), key=lambda one: one.modules)
    cause = [Mistake("own", "o_proj", -1.0, 1.0), Mistake("outputs reversed", "v_proj", 1.0, 1.0)]
    rest = [("", "")] * (request.tokens - 1)
    wrong = answered(request, made_by(request, cause, [("own", "outputs reversed"), *rest]), 3)
    found = pairs(wrong.walk, (), wrong.sources, LIMIT)
    assert found
    for pair in found[:20]:
        keys = itertools.product(*([source.key for source in wrong.families[one.family]] for one in pair))
        ratios = [wrong.walk.ratios(np.array([0]), made_by(wrong, pair, [key, *rest])[:1])[0] for key in keys]
        assert min(ratios) < LIMIT


def kept(suspect: Suspect, key: str | None, tokens: int) -> Array:
    """The definition: logits of a request whose first tokens have the keys and values of another adapter."""
    model, p = suspect.testbed.exact, suspect.testbed.exact.precision(EXACT)
    written: list[tuple[Array, Array]] = []

    def see(k_cache: Array, v_cache: Array, k: Array, v: Array, *rest: Any) -> None:
        written.append((k.copy(), v.copy()))
        NUMPY.write_kv(k_cache, v_cache, k, v, *rest)

    def exchange(k_cache: Array, v_cache: Array, k: Array, v: Array, *rest: Any) -> None:
        other_k, other_v = written.pop(0)
        k, v = (np.concatenate([other[:tokens], own[tokens:]]) for other, own in ((other_k, k), (other_v, v)))
        NUMPY.write_kv(k_cache, v_cache, k, v, *rest)

    other = ModelRequest(suspect.request.prompt_ids, suspect.testbed.wide[key] if key else None)
    for request, write_kv in ((other, see), (suspect.request, exchange)):
        ops = replace(NUMPY, write_kv=write_kv)
        batch, cache, adapters = whole_prompts(model, [request], ops, p, every_row=True)
        logits = to_host(forward(model, batch, cache, adapters.slots, ops, p))
    return logits


@given(st.data(), st.booleans())
@settings(deadline=None, max_examples=12, suppress_health_check=list(HealthCheck))
def test_keys_and_values_of_another_adapter_that_were_kept(data: st.DataObject, rows_are_right: bool) -> None:
    """Whether the rows of those tokens read what was kept or not: whose it is and of how many tokens is found."""
    request = data.draw(st.sampled_from(requests()))
    suspect = request.as_it_came.suspect
    key = data.draw(st.sampled_from([None, *(key for key in suspect.testbed.adapters if key != suspect.key)]))
    tokens = data.draw(st.integers(1, request.tokens - 1))
    logits, right = kept(suspect, key, tokens), whole(suspect, [[]] * request.tokens)
    if rows_are_right:
        logits[:tokens] = right[:tokens]
    wrong = answered(request, logits, 5)
    assume((wrong.walk.ratios(np.arange(request.tokens), right) >= LIMIT)[-1 if rows_are_right else 0 :].all())
    assume(not rows_are_right or wrong.follow([()], LIMIT)[0].dead == tokens)
    (followed,) = wrong.follow([(OF_ANOTHER,)], LIMIT)
    assert followed.dead is None
    assert followed.present(0)[:tokens].all()
    sources = [followed.sources(0, t) for t in range(tokens)]
    assert len(set(sources)) == 1
    (found,) = sources[0]
    if found != f"kept: {key or THE_BASE}":  # then those are the same here
        np.testing.assert_allclose(kept(suspect, found.removeprefix("kept: "), tokens)[tokens:], logits[tokens:])


@given(st.data())
@settings(deadline=None, max_examples=12, suppress_health_check=list(HealthCheck))
def test_first_blocks_of_another_adapter_that_nobody_sees(data: st.DataObject) -> None:
    """The engine tells how many tokens it found, and shows the last row of the prompt alone. Of those the first ones
    are another adapter's, the others its own behind them."""
    request = data.draw(st.sampled_from([one for one in all_requests() if 6 <= one.tokens <= 24]))
    suspect = request.as_it_came.suspect
    key = data.draw(st.sampled_from([None, *(key for key in suspect.testbed.adapters if key != suspect.key)]))
    found = data.draw(st.integers(4, request.tokens - 1))
    tokens = data.draw(st.sampled_from([found, *range(4, found, 4)]))
    logits = kept(suspect, key, tokens)
    last = request.tokens - 1
    wrong = shown_from(answered(request, logits, 5), last)
    assume(wrong.follow([()], LIMIT)[0].dead == last)
    assert wrong.follow([(OF_ANOTHER,)], LIMIT)[0].dead == last  # nobody tells that it found any
    exchange = wrong.as_it_came.suspect.exchange
    response = replace(exchange.response, steps=(Computed(0, 0, found, request.tokens - found),))
    told = replace(wrong.as_it_came.suspect, exchange=replace(exchange, response=response), _batches={})
    (followed,) = Request(replace(wrong.as_it_came, suspect=told)).follow([(OF_ANOTHER,)], LIMIT)
    assert followed.dead is None
    present = followed.present(0).tolist()
    length = present.index(0) if 0 in present else len(present)
    (source,) = followed.sources(0, 0)
    if (source, length) != (f"kept: {key or THE_BASE}", tokens):  # then those are the same here
        other = None if source == f"kept: {THE_BASE}" else source.removeprefix("kept: ")
        np.testing.assert_allclose(kept(suspect, other, length)[last], logits[last], rtol=1e-3, atol=1e-4)


def test_states_are_all_combinations() -> None:
    request = requests()[0]
    cause = [Mistake("own", "", -1.0, 1.0), Mistake("instead: another adapter", "", 1.0, 1.0)]
    states = states_of(cause, request.families)
    others = ["", *(source.key for source in request.families["instead: another adapter"])]
    assert states[0] == ("", "") and set(states) <= set(itertools.product(["", "own"], others))


def test_one_adapter_as_if_it_were_another() -> None:
    """What is done to the own delta is, of whoever stands for it, what would be done to that adapter's own one."""
    request, compared = requests()[0], 0
    suspect = request.as_it_came.suspect
    assert suspect.key is not None
    instead = [one for _, one in request.sources if one.of_other is not None]
    assert instead
    names, watch = suspect.testbed.exact.config.layer_modules, suspect.adjoint.watch
    for other in instead:
        assert other.of_other is not None
        theirs = {one.key: one for one in sources_of(other.of_other, {}, names, False)}
        for module in suspect.testbed.exact.config.modules()[1:4]:
            point = suspect.point(module, watch.inputs[module], watch)
            for key in ("own", "own bias", "rows: the second half", "scale squared"):
                got = suspect.sources[key].delta(point.as_if(suspect.key, other.of_other))
                expected = theirs[key].delta(point)
                assert (got is None) == (expected is None)
                if got is not None and expected is not None:
                    np.testing.assert_array_equal(got, expected)
                    compared += 1
    assert compared > 10
