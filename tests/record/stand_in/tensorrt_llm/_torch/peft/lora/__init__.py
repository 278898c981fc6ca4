"""From 1.3 on."""

from ...._stand_in import only

only((1, 3), (9, 9), __name__)
