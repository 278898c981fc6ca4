"""Profiles of Hypothesis for tests/gpu alone: pytest --confcutdir=tests/gpu --hypothesis-profile gpu tests/gpu

With that --confcutdir, tests/conftest.py is not read: it needs beartype, and its checks of shapes know NumPy only.
"""

from hypothesis import HealthCheck, settings

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
for name, examples in (("gpu", 10), ("rehearsal", 2), ("sanitizer", 2)):
    settings.register_profile(
        name, max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=SLOW
    )
