"""Random bases in turn: what each is asked, under which seed, of which family, and what all of them come to."""

from collections.abc import Sequence
from dataclasses import replace

from .cases.variety import TURNS
from .diagnosis.power import DETECTED, NOT_EXERCISED, UNDETECTABLE
from .noise.verdict import overall
from .reports.result import CampaignSettings, Result

BATCHES, SEQUENCES = 13, 8  # on one random base, before it gives way to the next: 50 and 30 are on four of them
OTHER_BATCHES, OTHER_SEQUENCES = 3, 1  # of these on a base of another family, if the engine has any
LLAMAS = ("llama", "mistral")


def shares(settings: CampaignSettings, families: Sequence[str] = ()) -> list[tuple[CampaignSettings, str]]:
    """Return what each base is asked, each under a seed of its own, and of which family it is ("": a Llama or Mistral).

    Where settings name families, each gets as much. Otherwise Llamas take turns with bases of the other families that
    the engine has, which get less; the last gets the rest. A shorter campaign is a prefix of a longer one, so recorded
    answers can be reused."""
    parts = _of_families(settings) if settings.families else _of_llamas(settings, families)
    if settings.budget is None:
        return parts
    return [(replace(share, budget=settings.budget / len(parts)), family) for share, family in parts]


def not_asked(parts: Sequence[tuple[CampaignSettings, str]], families: Sequence[str]) -> list[str]:
    """Return one line where an engine has other families, and there were too few cases for any of them."""
    others = [family for family in families if family not in LLAMAS]
    if not others or any(family for _, family in parts):
        return []
    names = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    return [f"so few cases are all on Llamas: no base of {names} was asked (--families, or more cases)"]


def _of_families(settings: CampaignSettings) -> list[tuple[CampaignSettings, str]]:
    """Return an equal share for each family, as far as there are cases."""
    number, parts = len(settings.families), []
    for i, family in enumerate(settings.families):
        cases, sequences = ((n + number - 1 - i) // number for n in (settings.cases, settings.sequences))
        if cases + sequences:
            parts.append((replace(settings, cases=cases, sequences=sequences, seed=settings.seed + i), family))
    return parts


def _of_llamas(settings: CampaignSettings, families: Sequence[str]) -> list[tuple[CampaignSettings, str]]:
    """Return the shares of TURNS Llamas, and after each that of a base of another family, if there are any."""
    others = [family for family in families if family not in LLAMAS]
    less = (OTHER_BATCHES, OTHER_SEQUENCES) if others else (0, 0)
    parts: list[tuple[CampaignSettings, str]] = []
    cases, sequences = settings.cases, settings.sequences
    for turn in range(TURNS):
        seed, last = settings.seed + turn, turn == TURNS - 1
        llama = ("", BATCHES - less[0], SEQUENCES - less[1]) if not last else ("", cases, sequences)
        other = (others[seed % len(others)] if others else "", *less)
        for family, batches, scenarios in (other, llama) if last else (llama, other):
            share = replace(settings, cases=min(cases, batches), sequences=min(sequences, scenarios), seed=seed)
            if share.cases + share.sequences:
                parts.append((share, family))
            cases, sequences = cases - share.cases, sequences - share.sequences
    return parts


def joined(base: str, before: Result | None, now: Result) -> Result:
    """Return the result on a base, whose cases get its name, with all that was asked before it on others.

    What any of the bases would have shown counts."""
    for played in now.played:
        if not played.case.name.startswith(f"{base}, "):
            played.case = replace(played.case, name=f"{base}, {played.case.name}")
    cause = now.explanation.cause
    if cause is not None:  # its tokens are of the same cases
        tokens = tuple(replace(one, case=f"{base}, {one.case.removeprefix(f'{base}, ')}") for one in cause.tokens)
        now.explanation.cause = replace(cause, tokens=tokens)
    if before is None:
        return now
    verdict = overall([before.verdict, now.verdict])
    said = [*before.diagnostics, *now.diagnostics]
    if not now.played:  # it was stopped before anything of this base was measured
        return replace(before, verdict=verdict, diagnostics=said, stopped_by=now.stopped_by)
    rank = [DETECTED, UNDETECTABLE, NOT_EXERCISED]
    power = {
        name: min(before.power.get(name, NOT_EXERCISED), now.power.get(name, NOT_EXERCISED), key=rank.index)
        for name in before.power | now.power
    }
    seconds = {
        what: before.seconds.get(what, 0.0) + now.seconds.get(what, 0.0) for what in before.seconds | now.seconds
    }
    played_by_now = [*before.played, *now.played]
    looked_at = {one.mutant.name for one in now.candidates if one.projection.exercised}
    candidates = [one for one in before.candidates if one.mutant.name not in looked_at]
    candidates += [one for one in now.candidates if one.mutant.name in looked_at]
    return replace(
        now,
        verdict=verdict,
        played=played_by_now,
        diagnostics=said,
        power=power,
        seconds=seconds,
        candidates=candidates,
    )
