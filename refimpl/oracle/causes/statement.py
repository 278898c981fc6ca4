"""A cause as it is reported: which delta, at which modules, for which tokens, where; and how much it explains."""

from dataclasses import dataclass

from ...engines.interface import Computed

SMALL = 0.1  # share of the failed requests that a cause may leave over without being called a part


@dataclass(frozen=True)
class Change:
    """One part of a cause: c times a source is added, at some modules, for some tokens."""

    what: str  # "its own delta is missing"
    source: str  # its key, or a known bug's name
    modules: str  # "" is every module
    tokens: str  # "" is all of them
    coefficient: float | None  # None: it differs from adapter to adapter
    by_adapter: tuple[tuple[str, float], ...] = ()  # then these
    bug: str = ""  # the known bug that does the same
    links: tuple[str, ...] = ()
    when: str = ""  # "where its adapter has rsLoRA"; "" if always
    is_guess: bool = False  # is that near what was seen, or a matter of steps that were worked out?

    @property
    def sentence(self) -> str:
        """ "its own delta is missing, at o_proj, for decode steps"."""
        where = f", at {self.modules}" if self.modules else ", at every module"
        tokens = f", for {self.tokens}" if self.tokens else ""
        return f"{self.what}{where}{tokens}"

    @property
    def in_full(self) -> str:
        """With when it holds."""
        return self.sentence + _behind(self.when)


@dataclass(frozen=True)
class Tokens:
    """Tokens of a request that follow one another, in each of which a change was made, whatever rule holds; or the
    first token that is not explained."""

    case: str
    run: int  # which batch of the case, from 0 on
    request: int  # which request of the batch, from 0 on
    adapter: str | None  # as the report calls it; None: the base
    length: int  # of the request, in tokens that were computed: prompt and produced ones but the last
    change: int | None  # which change of the cause, from 0 on; None: nothing explains this token
    first: int  # the place of the first of these tokens, prompt and produced ones together
    last: int  # and of the last
    of: str = ""  # whose delta it is, where a cause has it of several adapters
    steps: tuple[Computed, ...] = ()  # in which they were computed last, if the engine tells its steps
    is_cached: bool = False  # does it tell that it found them in a cache?
    keys_and_values: bool = False  # is it those that are wrong, as a cache keeps them, and not the tokens' own rows?


@dataclass(frozen=True)
class CauseReport:
    """What was found of the cause of a campaign's failures; nothing is said whose residual is more than noise."""

    changes: tuple[Change, ...]
    exceptions: int  # requests that do not fit the conditions
    explained: int  # failed requests that it explains to the noise, of `failed` that were looked at, none with DoRA
    failed: int
    residual: float  # the worst row of those, in noise units
    seconds: float
    also: tuple[str, ...] = ()  # other causes, from which these requests cannot tell it
    rounds: bool = False  # computed numbers: near a tie one may have been rounded to its other side
    afterwards: int = 0  # of those that it explains, asked when it had been found (others.py, fewer.py)
    tokens: tuple[Tokens, ...] = ()  # of the campaign's failed requests, in order

    @property
    def where(self) -> str:
        """The condition under which all of its changes hold; "" if always, or if each has another one."""
        conditions = {change.when for change in self.changes}
        return conditions.pop() if len(conditions) == 1 else ""

    @property
    def is_factor(self) -> bool:
        """Is it the own delta as a whole, in another measure?"""
        return len(self.changes) == 1 and self.changes[0].source == "own" and self.changes[0].coefficient != -1

    @property
    def sentence(self) -> str:
        """The whole cause in one sentence."""
        if self.where or not any(change.when for change in self.changes):
            sentence = "; and ".join(change.sentence for change in self.changes)
            sentence += _behind(self.where)
        else:
            sentence = "; and ".join(change.in_full for change in self.changes)
        return sentence + "".join(f"; or, which cannot be told apart here: {other}" for other in self.also)

    @property
    def evidence(self) -> str:
        """What speaks for it, in numbers."""
        share = f"{self.explained} of {self.failed} failed requests"
        count = f"{self.exceptions} request{' does' if self.exceptions == 1 else 's do'}"
        exceptions = f", {count} not fit the condition" if self.exceptions else ""
        if self.afterwards:
            share += f" ({self.afterwards} of them asked when it was found, of other adapters or in other batches)"
        rest = self.failed - self.explained
        part, more = "", ""
        ties = ", where a number near a tie was rounded to its other side" if self.rounds else ""
        if rest > SMALL * self.failed and not self.rounds:  # or else it has more such numbers
            part = "a part of what is wrong: "
            more = f"; it does not explain the other {rest}, so mend this and ask again"
        return f"{part}explains {share}, at most {self.residual:.2g} x noise left{ties}{exceptions}{more}"


def _behind(when: str) -> str:
    """A condition behind a sentence; other rules in brackets, if it is nothing else."""
    return f"{' ' if when.startswith('(') else ', '}{when}" if when else ""


def in_words(words: str, kind: str, coefficient: float | None, by_adapter: tuple[tuple[str, float], ...]) -> str:
    """Say what c times a source is. kind: as in Source."""
    is_ = "are" if " ranks " in f"{words} " and not words.startswith("the second half") else "is"
    if coefficient is None:
        before = 1 if kind in ("own", "part") else 0
        factors = ", ".join(f"{key} {before + value:.4g}" for key, value in by_adapter)
        scaled = (
            f"{is_} scaled wrongly" if kind in ("own", "part") else f"{is_} added with another factor for each adapter"
        )
        return f"{words} {scaled} ({factors})"
    if kind in ("instead", "bug", "kept"):
        return f"{words}" if coefficient == 1 else f"{words} ({coefficient:.4g} times)"
    if kind == "added":
        return f"{words} {is_} added" if coefficient == 1 else f"{coefficient:.4g} times {words} {is_} added"
    plain = {
        -1.0: f"{is_} missing",
        1.0: f"{is_} counted twice",
        -2.0: f"{'have' if is_ == 'are' else 'has'} the wrong sign",
    }
    return f"{words} " + plain.get(coefficient, f"{is_} {1 + coefficient:.4g} times as large as it should be")
