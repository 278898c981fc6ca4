"""Mutants under code names, for a bug hunt: `loracle check --engine blind:KEY` says what is wrong, and not what it is.

A code name is a letter and three digits of a salted digest of the mutant's name, so that no list of them stands
anywhere to be read. refimpl/engines/registry.py names this file by its path."""

import hashlib
from functools import lru_cache

from ...engines.interface import EngineError
from ...engines.ours import Ours
from ...engines.registry import BLIND
from . import Mutant, all_mutants

SALT = b"loracle: bug hunt 0"  # another salt gives every mutant another code name, and makes HUNT stale

# The eight of the lab: one of each class A to H, in the order of their code names.
HUNT = ("c132", "e209", "f962", "g870", "p564", "p981", "r336", "s647")


def code_name(mutant: str) -> str:
    """Return the code name of the mutant of this name: "k417"."""
    digest = hashlib.sha256(SALT + mutant.encode()).digest()
    number = int.from_bytes(digest[:8], "big")
    return f"{chr(ord('a') + number % 26)}{number // 26 % 1000:03d}"


def revealed(code: str) -> Mutant:
    """Return the mutant behind a code name, which "blind:" may precede. EngineError if there is none."""
    code = code.removeprefix(BLIND)
    mutants = _by_code_name()
    if code not in mutants:
        raise EngineError(f"no engine has the code name {code!r}; those of the bug hunt are {', '.join(HUNT)}")
    return mutants[code]


def make(name: str) -> Ours:
    """Return our own engine with the bug behind "blind:KEY". EngineError if there is none."""
    return Ours(revealed(name).make)


@lru_cache(maxsize=1)
def _by_code_name() -> dict[str, Mutant]:
    return {code_name(name): mutant for name, mutant in all_mutants().items()}
