"""What a campaign asks, and in which order: batches, then sequences, until its share of the budget is spent.

The same seed asks the same questions, and a shorter campaign asks the first of a longer one's."""

from collections.abc import Callable, Iterator

import numpy as np

from ..engines.interface import Capabilities, Settings
from .cases import scenarios
from .cases.batches import draw_batch, draw_long, draw_pair, draw_sums
from .cases.case import Case
from .cases.testbed import Testbed
from .cases.testbed import settings as testbed_settings
from .reports.result import CampaignSettings


def cases_of(
    testbed: Testbed,
    capabilities: Capabilities,
    campaign: CampaignSettings,
    is_late: Callable[[], bool],
    said: list[str],
) -> Iterator[tuple[Case, Settings]]:
    """Yield each case with how the engine is to be started for it. Where is_late() ends it early, that is said."""
    plain = testbed_settings(testbed)
    for i in range(campaign.cases):
        if i and is_late():  # of each base one, or it would say nothing
            said.append(f"the budget ended after {i} of {campaign.cases} batches")
            break
        yield batch(testbed, capabilities, campaign.seed, i), plain
    sequences = sequences_of(campaign, capabilities)
    variants = scenarios.variants(testbed, capabilities) if sequences else []
    for number, settings in enumerate(variants):  # one way after the other: starting an engine is slow
        for i in range(number, sequences, len(variants)):
            if is_late():
                said.append(f"the budget ended before sequence {i}")
                break
            yield scenarios.draw_sequence(testbed, capabilities, campaign.seed, i, settings), settings


def batch(testbed: Testbed, capabilities: Capabilities, seed: int, i: int) -> Case:
    """Return batch i of a seed: of eight, one of an adapter and the base alone, one with a long prompt, and one of sums
    where there are any."""
    rng, name = np.random.default_rng([seed, i, 1]), f"batch {i}"
    if i % 8 == 3:
        return draw_pair(testbed, rng, name)
    case = draw_long(testbed, rng, name) if i % 8 == 5 else None
    if i % 8 == 7 and "sums" in capabilities.features:
        case = draw_sums(testbed, rng, name)
    return case or draw_batch(testbed, capabilities, rng, name)


def sequences_of(campaign: CampaignSettings, capabilities: Capabilities) -> int:
    """Return how many sequences there are: none for an engine that can neither load nor cache."""
    return campaign.sequences if {"load", "prefix_cache"} & capabilities.operations else 0
