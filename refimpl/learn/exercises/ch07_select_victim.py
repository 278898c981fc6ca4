"""Chapter 7: which slot is emptied, when all are full and somebody new comes?

loracle learn check        is it right?
loracle learn hint         a hint; there are three
"""


def select_victim(last_used, ref_counts):
    """Return the slot to empty, or None if there is none that may be.

    last_used   slot -> when it was last used; larger is later, and no two are equal
    ref_counts  slot -> how many running requests use it; 0, or missing, where nobody does

    Both belong to the engine: do not change them.
    """
    raise NotImplementedError
