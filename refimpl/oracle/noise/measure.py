"""One exchange, measured: the engine's error beside the errors of the honest runs, row by row, in the same units.

The unit of a row is the rms of the honest errors in it. What an honest engine's ratio looks like is not assumed but
seen: each honest run is itself measured in the unit that the others make (leave one out).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...arrays import Array
from ...engines.interface import EngineResponse, Settings
from ...model import logits
from ...request import Request
from ..cases import case as cases
from ..cases.case import Case, Exchange
from ..cases.testbed import Testbed
from .ensemble import Member, honest_runs
from .readout import Gap, Unreadable, View, rows_of, view
from .rms import rms, rms_shown

ROUNDED_ONE = 2.0**-23  # of a float32: engines show logarithms of float32 probabilities, whatever they compute in


@dataclass(frozen=True, eq=False)
class ErrorRatios:
    """The rows of one exchange."""

    case: str
    run: int
    index: int
    adapter: str | None
    first: int  # the place of the first row
    ratio: Array  # [rows] rms of the engine's error over the unit
    # [members, rows] the same of each honest run, in the unit of the others; NaN where they do not tell how far off one
    # may be: where one token has all the probability, and is all that is shown, none is off at all.
    honest: Array
    unit: Array  # [rows] rms over the vocabulary
    # How far (in units) this response is from the nearest wrong one: the base's, or that of another adapter in the
    # batch. Small: an exchange of adapters would go unnoticed.
    adapter_effect: float
    problem: str = ""  # why there are no rows: a response that is none

    @property
    def overall(self) -> float:
        """The rms of the ratios of all rows."""
        return float(rms(self.ratio))

    @property
    def telling(self) -> Array:
        """[rows] of bool: do the honest runs tell how far off one may be?"""
        return np.asarray(np.isfinite(self.honest).all(axis=0))

    @property
    def honest_there(self) -> Array:
        """The ratios of the honest runs [members, telling rows]."""
        return self.honest[:, self.telling]

    @property
    def honest_overall(self) -> Array:
        """The rms of these, of each honest run."""
        return rms(self.honest_there, axis=1)


@dataclass(frozen=True, eq=False)
class Errors:
    """The errors themselves, for the filters that look along a direction."""

    view: View
    rows: slice  # of the whole text's rows, those that the engine showed
    exact: Array  # [rows, vocab] the truth, as the engine would show it
    logits: Array  # [rows, vocab] the truth, in full
    error: Array  # [rows, vocab]
    honest: Array  # [members, rows, vocab]
    unit: Array  # [rows]

    @property
    def vocab(self) -> int:
        """How many logits a row has."""
        return self.logits.shape[1]


@dataclass(frozen=True, eq=False)
class Sample:
    """One case with its errors kept."""

    case: Case
    exchanges: Sequence[Exchange]  # all of them
    raws: Sequence[Errors | None]  # of those that count
    settings: Settings
    terms: dict[str, Any] = field(default_factory=dict, repr=False)  # of the bugs that were projected on it, by name

    @property
    def counted(self) -> list[Exchange]:
        """The exchanges that count, in the order of `raws`."""
        return [exchange for exchange in self.exchanges if exchange.request.cancel_after is None]


def measure(
    case: Case, exchanges: Sequence[Exchange], testbed: Testbed, members: Sequence[Member]
) -> tuple[list[ErrorRatios], list[Errors | None]]:
    """Every exchange of a case that counts: one that was cancelled does not."""
    counted = [exchange for exchange in exchanges if exchange.request.cancel_after is None]
    problems = {id(exchange): problem for exchange in counted if (problem := malformed(exchange, testbed))}
    readable = [exchange for exchange in counted if id(exchange) not in problems]
    exact = cases.truth(readable, testbed) if readable else []
    requests = [cases.teacher_forced(exchange, testbed.adapters) for exchange in readable]
    runs = honest_runs(testbed.model, requests, members) if readable else []
    others = _others(readable, testbed)
    measured: list[ErrorRatios] = []
    raws: list[Errors | None] = []
    for exchange in counted:
        problem = problems.get(id(exchange), "")
        raw = None
        if not problem:
            i = readable.index(exchange)
            try:
                raw = errors_of(exchange.response, exact[i], [run[i] for run in runs])
            except Unreadable as error:
                problem = str(error)
        if raw is None:
            none = np.zeros(0)
            measured.append(
                ErrorRatios(
                    case.name,
                    exchange.run,
                    exchange.index,
                    exchange.adapter,
                    0,
                    none,
                    np.zeros((0, 0)),
                    none,
                    0.0,
                    problem,
                )
            )
        else:
            adapter_effect = min((_distance(raw, x) for x in others[i]), default=np.inf)
            measured.append(_measured(case, exchange, raw, adapter_effect))
        raws.append(raw)
    return measured, raws


def errors_again(exchanges: Sequence[Exchange], ratios: Sequence[ErrorRatios], testbed: Testbed) -> list[Errors | None]:
    """Return the errors of exchanges that were measured: their noise is known, so that only the truth is computed.

    exchanges: those that count. None for what cannot be read, and for text alone. They hold no honest errors."""
    readable = [i for i, (exchange, one) in enumerate(zip(exchanges, ratios, strict=True)) if _has_rows(exchange, one)]
    exact = cases.truth([exchanges[i] for i in readable], testbed) if readable else []
    again: list[Errors | None] = [None] * len(exchanges)
    for i, true in zip(readable, exact, strict=True):
        response = exchanges[i].response
        rows = slice(response.first_position, response.first_position + rows_of(response))
        v = view(response, true[rows])
        shown = v.of(true[rows])
        again[i] = Errors(v, rows, shown, true[rows], v.values - shown, np.zeros((0, *shown.shape)), ratios[i].unit)
    return again


def _has_rows(exchange: Exchange, ratios: ErrorRatios) -> bool:
    return not ratios.problem and 0 < rows_of(exchange.response) == len(ratios.unit)


def malformed(exchange: Exchange, testbed: Testbed) -> str:
    """Return what is wrong with a response before any number is compared; "" if nothing is."""
    response, vocab = exchange.response, cases.vocab_size_of(exchange.adapters, testbed)
    if response.error:
        return response.error
    if len(response.token_ids) != exchange.request.max_new_tokens:
        return f"{len(response.token_ids)} tokens where {exchange.request.max_new_tokens} were asked for"
    wrong = [t for t in response.token_ids if not 0 <= t < vocab]
    if wrong:
        return f"token {wrong[0]} is outside of the vocabulary of {vocab}"
    rows, last = rows_of(response), len(exchange.request.prompt_ids) + len(response.token_ids) - 1
    if (
        rows
        and response.first_position + rows != last
        and response.first_position + rows != len(exchange.request.prompt_ids)
    ):
        return f"{rows} rows from place {response.first_position} on, for a text of {last} places"
    return ""


def errors_of(response: EngineResponse, exact: Array, runs: Sequence[Array]) -> Errors:
    """Return the errors of one response and of the honest runs, over the rows that it shows."""
    shown = rows_of(response)
    if not shown:
        return _look_at_text(response, exact, runs)
    rows = slice(response.first_position, response.first_position + shown)
    v = view(response, exact[rows])
    true = v.of(exact[rows])
    honest = np.stack([v.of(run[rows].astype(np.float64)) - true for run in runs])
    unit = rms(rms_shown(honest, v.shown[None]).T, axis=1)
    # The logarithm of a probability near 1, alone in its row, is no error of logits but how 1 was rounded.
    unit = np.where(v.shown.sum(axis=-1) > 1, unit, np.maximum(unit, ROUNDED_ONE))
    return Errors(v, rows, true, exact[rows], v.values - true, honest, unit)


def _look_at_text(response: EngineResponse, exact: Array, runs: Sequence[Array]) -> Errors:
    """Of text only this can be said: the token's true logit lies so far below the best one's, where honest runs are so
    far off in the difference of the two. A token that is the best is no error, however close it was."""
    n, places = len(response.token_ids), len(exact) - len(response.token_ids)
    rows = slice(places, len(exact))
    tokens, at = np.asarray(response.token_ids), np.arange(n)
    best = exact[rows].argmax(axis=1)

    v = Gap(np.zeros((n, 1)), np.ones((n, 1), bool), best=best, tokens=tokens)
    # Where the best token was chosen, the noise is that of the runner-up.
    rival = np.where(tokens == best, np.argsort(exact[rows], axis=1)[:, -2], tokens)
    errors = [run[rows].astype(np.float64) - exact[rows] for run in runs]
    honest = np.stack([(x[at, best] - x[at, rival])[:, None] for x in errors])
    unit = np.maximum(rms(honest[:, :, 0], axis=0), np.finfo(float).tiny)
    # The engine's own numbers put its token on top: its error in the gap is the gap, or more.
    true = v.of(exact[rows])
    return Errors(v, rows, true, exact[rows], -true, honest, unit)


def _measured(case: Case, exchange: Exchange, raw: Errors, adapter_effect: float) -> ErrorRatios:
    shown = raw.view.shown
    honest = rms_shown(raw.honest, shown[None])  # [members, rows]
    total, n = np.sum(honest**2, axis=0), len(honest)
    of_others = np.sqrt((total - honest**2) / max(n - 1, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio, left_out = rms_shown(raw.error, shown) / raw.unit, honest / of_others  # 0 / 0: NaN
    faint = (shown.sum(axis=-1) == 1) & (raw.unit <= ROUNDED_ONE) & (not isinstance(raw.view, Gap))
    left_out = np.where(faint | (of_others == 0).any(axis=0), np.nan, left_out)
    first = raw.rows.start
    return ErrorRatios(
        case.name, exchange.run, exchange.index, exchange.adapter, first, ratio, left_out, raw.unit, adapter_effect
    )


def _others(readable: Sequence[Exchange], testbed: Testbed) -> list[list[Array]]:
    """For each exchange, the exact logits of the same text by the base and by the other adapters of its run."""
    neighbours_of = []
    for exchange in readable:
        neighbours = dict.fromkeys([(), *(other.adapters for other in readable if other.run == exchange.run)])
        last = max(
            cases.teacher_forced(exchange, testbed.adapters).prompt_ids
        )  # a word that only this adapter has is no prompt for another
        neighbours_of.append(
            [
                other
                for other in neighbours
                if other != exchange.adapters and last < cases.vocab_size_of(other, testbed)
            ][:3]
        )
    requests = [
        Request(
            cases.teacher_forced(exchange, testbed.adapters).prompt_ids,
            [(testbed.adapters[key], weight) for key, weight in adapters],
        )
        for exchange, others in zip(readable, neighbours_of, strict=True)
        for adapters in others
    ]
    rows = iter(logits(testbed.exact, requests) if requests else [])
    return [[next(rows) for _ in others] for others in neighbours_of]


def _distance(raw: Errors, other: Array) -> float:
    """How far another answer is from the right one, in units, in the row that tells them apart best."""
    common = min(other.shape[1], raw.vocab)  # one of them may have a grown vocabulary
    present = raw.logits.copy()
    present[:, :common] = other[raw.rows, :common]
    moved = raw.view.error(present, raw.logits)
    return float(np.max(rms_shown(moved, raw.view.shown) / raw.unit))
