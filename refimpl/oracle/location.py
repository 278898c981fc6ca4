"""The location of a failure: how far off each layer and module is, and the first that is off."""

from collections.abc import Sequence
from typing import Any

from ..engines.interface import EngineError
from .cases.case import Case, Exchange
from .context import Context
from .diagnosis.localise import Location, by_ablation, first_off, intermediates
from .reports.result import PlayedCase

KEEPS = "where it is wrong was not looked for with adapters cut to size: answers depend on what was asked before"


def located(
    context: Context, failed: Sequence[PlayedCase], keeps: bool = False
) -> tuple[list[Location], Location | None, list[str]]:
    """Return how far off each layer and module is, the first that is off, and what went wrong in finding out: from
    intermediates, if the engine shows them; else from adapters cut to size.

    keeps: its answers depend on what was asked before, so that an adapter that is answered well tells nothing."""
    batch = next((one for one in failed if one.case.stateless), None)
    if batch is None:
        return [], None, []
    context.observer.advance("locating", 0, 1)
    failures = context.failures(batch.case, batch.settings)
    wrong = [exchange for exchange, _ in failures if exchange.adapter is not None]
    locations: list[Location] = []
    divergence: Location | None = None
    try:
        if wrong:
            locations = _traced(context, batch.case, wrong[0])
            divergence = first_off(locations, context.thresholds)
        if wrong and divergence is None and keeps:
            return locations, None, [KEEPS]
        if wrong and divergence is None and (ablated := _ablated(context, wrong)) is not None:
            locations, divergence = ablated, next(iter(ablated), None)
    except EngineError as error:
        return locations, divergence, [f"while the failure was located: {error}"]
    context.observer.advance("locating", 1, 1)
    return locations, divergence, []


def _traced(context: Context, case: Case, exchange: Exchange) -> list[Location]:
    """Return what the engine's intermediates say of a request; [] if it shows none."""
    traced: Any = getattr(context.driver.engine, "traced", None)
    if not context.driver.capabilities.trace or traced is None:
        return []
    with context.driver.watch.asking("asked for its intermediates"):
        responses = traced(case.runs[exchange.run].requests)
    return intermediates(exchange, responses[exchange.index], context.testbed, context.members)


def _ablated(context: Context, wrong: Sequence[Exchange]) -> list[Location] | None:
    """Return what adapters cut to one module, then one layer, say; None if they cannot be loaded, or cut."""
    one = next((exchange for exchange in wrong if len(exchange.adapters) == 1), None)
    if one is None or "load" not in context.driver.capabilities.operations:
        return None
    adapter = context.testbed.adapters[one.adapters[0][0]]
    if adapter.replaced or adapter.biases or adapter.tokens:
        return None
    work = context.driver.work / "ablation"
    with context.driver.watch.asking("asked with adapters cut to size"):
        return by_ablation(context.driver.engine, adapter, context.testbed, context.members, context.thresholds, work)


def locate_layers(context: Context, played: Sequence[PlayedCase]) -> tuple[list[Location], list[str]]:
    """Return how far off each module is in a batch where nothing failed, if the engine shows its intermediates; and
    what went wrong in finding out."""
    batch = next((one for one in played if one.case.stateless), None)
    if not context.driver.capabilities.trace or batch is None:
        return [], []
    try:
        exchanges = context.driver.run(batch.case, batch.settings)
        exchange = next((one for one in exchanges if one.adapter is not None and not one.response.error), None)
        return ([] if exchange is None else _traced(context, batch.case, exchange)), []
    except EngineError as error:
        return [], [f"while the layers were looked at: {error}"]
