"""Numbers for people."""

import math


def human_bytes(n: float) -> str:
    """Return a number of bytes with its unit: 1.2 MB; from what would be printed as 1000.0 on, in the next one."""
    units = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
    power = 0
    while power + 1 < len(units) and n >= (1000 if power == 0 else 999.95) * 1000**power:
        power += 1
    return f"{n / 1000**power:.{0 if power == 0 else 1}f} {units[power]}"


def human_seconds(seconds: float) -> str:
    """Return a time with three digits and its unit: 0.52 ms, 12.3 s, 4.2 min, 1.5 h, 3.1 days."""
    for unit, name in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def human_number(n: float) -> str:
    """Return a large number in words that can be said: 41.9M, 8.03G."""
    power = min(5, int(math.log(n, 1000))) if n >= 1 else 0
    return f"{n:.0f}" if power == 0 else f"{n / 1000**power:.3g}{' kMGTP'[power]}"
