"""A request followed along a possible cause: for each token, was the mistake made there?

    token      0      1      2      3         the row of a token must come down to noise with the mistake, or without:
    made       no     yes    yes    ?         which of them is known where only one of both does so

Nothing is assumed of which tokens they are; that is learnt from what came of it (rule.py). One pass goes on as the
token before was computed, to the end, and tries the other ways at each token beside: a wrong row sends it another way
from there on, so that a request takes as many passes as it changes.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...arrays import Array
from .mistakes import Mistake
from .mix_up import Source
from .states import State, states_of, terms_of
from .walk import Copy, Walk

PASSES = 8  # of one request and one cause; larger: slower, and more of what changes often is followed to its end
LINES = 2  # followed together, whose keys and values are kept where they end; larger: more memory


@dataclass(frozen=True, eq=False)
class Line:
    """How the tokens so far were computed, and how it goes on."""

    blocks: tuple[int, ...]
    possible: tuple[frozenset[State], ...]  # of each token: all ways that its row allows
    state: State
    worst: float = 0.0  # of what is left of its rows, in noise units

    @property
    def beginning(self) -> frozenset[State]:
        """The states of its first token."""
        return self.possible[0] if self.possible else frozenset([self.state])


@dataclass(eq=False)
class Followed:
    """What came of following one cause along one request."""

    possible: tuple[frozenset[State], ...] = ()
    worst: float = 0.0  # of what is left of the rows, in noise units
    dead: int | None = None  # the token that no way of computing it explains
    line: Line | None = None  # up to there; its blocks are those of a cache that whoever is followed next writes over
    cause: tuple[Mistake, ...] = ()  # that was followed

    def present(self, i: int) -> Array:
        """For each token: was change i made? 1, 0, or -1 where that cannot be seen."""
        return np.array([_agreed({bool(state[i]) for state in states}) for states in self.possible], int)

    def or_else(self, other: "Followed") -> "Followed":
        """Return the same, if its tokens may have been computed as in another one, too."""
        possible = tuple(one | more for one, more in zip(self.possible, other.possible, strict=True))
        return Followed(possible, self.worst)

    def with_one_more(self) -> "Followed":
        """Return the same of a cause that has one more mistake, which is not made here."""
        possible = tuple(frozenset((*state, "") for state in states) for states in self.possible)
        line = self.line and Line(self.line.blocks, possible[: len(self.line.blocks)], (*self.line.state, ""))
        return Followed(possible, self.worst, self.dead, line, self.cause)

    def sources(self, i: int, t: int) -> frozenset[str]:
        """Return which sources change i may be at a token."""
        return frozenset(state[i] for state in self.possible[t] if state[i])


def _agreed(present: set[bool]) -> int:
    return int(present.pop()) if len(present) == 1 else -1


def follow(
    walk: Walk,
    causes: Sequence[Sequence[Mistake]],
    options: Mapping[str, Sequence[Source]],
    limit: float,
    begun: Sequence[Line] = (),
    keep: Sequence[Line] = (),
) -> list[Followed]:
    """Follow each cause; of a few that end the keys and values of their lines are in the cache afterwards.

    limit: the ratio from which on a row is no noise. begun: how far each has been followed. keep: other lines whose
    keys and values stay there."""
    states = [states_of(cause, options)[: walk.at_once // walk.tokens] for cause in causes]
    hidden = walk.first_shown > 0  # of such tokens nobody sees a row: all of them are taken to be alike
    stacks = [[Line((), (), state) for state in reversed(some if hidden else some[:1])] for some in states]
    if begun:
        stacks = [[line] for line in begun]
    followed, finished = [Followed() for _ in causes], [False] * len(causes)

    def end(i: int, one: Followed) -> None:
        """A way to the end was found. Where it began with tokens that nobody sees, another beginning may be as good."""
        followed[i] = followed[i].or_else(one) if finished[i] else one
        finished[i] = True

    for _ in range(PASSES):
        heads = []
        for i, stack in enumerate(stacks):
            if finished[i]:
                stack[:] = [line for line in stack if hidden and not line.beginning <= followed[i].possible[0]]
            if not stack:
                continue
            line = stack.pop()
            if len(line.blocks) == walk.tokens:  # its last token was computed in another way
                end(i, Followed(line.possible, line.worst))
            else:
                heads.append((i, line))
        if not heads and not any(stacks):
            break
        for some in _groups(walk, states, heads) if heads else ():
            in_use = [line for stack in stacks for line in stack] + [line for _, line in heads]
            in_use += [*keep, *(one.line for one in followed if one.line and len(causes) <= LINES)]
            passes = _go_on(walk, causes, states, options, some, in_use, limit)
            for (i, line), gone in zip(some, passes, strict=True):
                one = Followed() if finished[i] else followed[i]
                if gone.finish(one, stacks[i], limit, line):
                    end(i, one)
    return followed


def _groups(
    walk: Walk, states: Sequence[Sequence[State]], heads: Sequence[tuple[int, Line]]
) -> Iterator[list[tuple[int, Line]]]:
    """Yield as many lines as go into one pass."""
    group, rows = list[tuple[int, Line]](), 0
    for i, line in heads:
        more = (walk.tokens - len(line.blocks)) * len(states[i])
        if group and rows + more > walk.at_once:
            yield group
            group, rows = [], 0
        group.append((i, line))
        rows += more
    yield group


@dataclass(eq=False)
class Pass:
    """One line computed to the end, and the other ways at each token."""

    blocks: list[int]  # of the line's own tokens
    ratios: Array
    same: list[bytes]
    others: dict[int, list[tuple[State, int, float, bytes]]]  # token -> each other state, its block, ratio and bits

    def finish(self, followed: Followed, stack: list[Line], limit: float, line: Line) -> bool:
        """Go along the line as far as its rows are noise. Push the ways that go on from there; is it the end?"""
        start, possible, ways = len(line.blocks), list(line.possible), list[Line]()
        for n, ratio in enumerate(self.ratios):
            good = [one for one in self.others.get(start + n, ()) if one[2] < limit]
            here = Line((*line.blocks, *self.blocks[:n]), tuple(possible), line.state, line.worst)
            if not ratio < limit:
                if not good and (followed.line is None or start + n > len(followed.line.blocks)):
                    followed.dead, followed.line, followed.possible = start + n, here, here.possible
                stack += ways + _ways(here, good)
                return False
            line = replace(line, worst=max(line.worst, float(ratio)))
            ways += _ways(here, [one for one in good if one[3] != self.same[n]])
            possible.append(frozenset([line.state, *(one[0] for one in good)]))
        followed.possible, followed.worst, followed.dead, followed.line = tuple(possible), line.worst, None, None
        return True


def _ways(line: Line, good: Sequence[tuple[State, int, float, bytes]]) -> list[Line]:
    """Return the lines that go on from a token in other states; those that do the same are one."""
    together: dict[bytes, list[tuple[State, int, float, bytes]]] = {}
    for one in good:
        together.setdefault(one[3], []).append(one)
    possible = (*line.possible, frozenset(one[0] for one in good))
    return [
        Line((*line.blocks, block), possible, state, max(line.worst, ratio))
        for (state, block, ratio, _), *_ in reversed(together.values())
    ]


def _go_on(
    walk: Walk,
    causes: Sequence[Sequence[Mistake]],
    states: Sequence[Sequence[State]],
    options: Mapping[str, Sequence[Source]],
    heads: Sequence[tuple[int, Line]],
    in_use: Sequence[Line],
    limit: float,
) -> list[Pass]:
    """Compute every line to the end in one pass, and in a second one the other ways at its tokens, up to the first that
    is wrong: nobody goes on behind that. in_use: lines whose blocks stay as they are."""
    sources = {source.key: source for some in options.values() for source in some}
    used = {block for line in in_use for block in line.blocks}
    lengths = [walk.tokens - len(line.blocks) for _, line in heads]
    free = iter(walk.new_blocks(sum(n * len(states[i]) for n, (i, _) in zip(lengths, heads, strict=True)), used))
    own_blocks = [list(itertools.islice(free, n)) for n in lengths]

    def computed(copies: Sequence[Copy], present: Sequence[tuple[int, State]]) -> tuple[Array, list[bytes]]:
        """Return of each row its ratio and its bits. present: its cause and its state."""
        logits = walk.compute(copies, terms_of(walk, causes, present, sources))
        tokens = np.concatenate([one.start + np.arange(len(one.blocks)) for one in copies])
        return walk.ratios(tokens, logits), walk.same(logits, [block for one in copies for block in one.blocks])

    lines = [Copy(len(line.blocks), line.blocks, blocks) for (_, line), blocks in zip(heads, own_blocks, strict=True)]
    ratios, same = computed(
        lines, [(i, line.state) for n, (i, line) in zip(lengths, heads, strict=True) for _ in range(n)]
    )
    passes, copies, present = list[Pass](), list[Copy](), list[tuple[int, State]]()
    at = list[tuple[Pass, int]]()  # of each copy: whose other way, and at which token
    for (i, line), blocks in zip(heads, own_blocks, strict=True):
        first, start = sum(len(one.blocks) for one in passes), len(line.blocks)
        here = Pass(blocks, ratios[first : first + len(blocks)], same[first : first + len(blocks)], {})
        passes.append(here)
        wrong = np.flatnonzero(~(here.ratios < limit))
        end = start + (int(wrong[0]) + 1 if len(wrong) else len(blocks))
        for t in range(max(start, walk.first_shown), end):
            for state in states[i]:
                if state != line.state:
                    copies.append(Copy(t, (*line.blocks, *blocks[: t - start]), [next(free)]))
                    present.append((i, state))
                    at.append((here, t))
    if copies:
        ratios, same = computed(copies, present)
        for n, ((here, t), copy, (_, state)) in enumerate(zip(at, copies, present, strict=True)):
            here.others.setdefault(t, []).append((state, copy.blocks[0], float(ratios[n]), same[n]))
    return passes
