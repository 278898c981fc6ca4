"""What an engine makes of a rank that it has no buffer or kernel for: the next one that it has."""

from collections.abc import Callable


def padded(n: int) -> Callable[[int], int]:
    """The next whole n."""
    return lambda size: size + -size % n


def power_of(base: int, least: int = 1) -> Callable[[int], int]:
    """Return what makes of a rank the next power of a base, from `least` on."""

    def power(r: int) -> int:
        n = least
        while n < r:
            n *= base
        return n

    return power


# What an engine has kernels for: the next of these is that of a rank.
BUCKETS = {"a power of two": power_of(2), "8, 16, 32 or 64": power_of(2, 8), "4, 16 or 64": power_of(4, 4)}
