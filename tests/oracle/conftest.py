"""An explanation has its clocks, of processor time. What is tested here must not depend on how fast a machine is."""

from refimpl.oracle import cause, explain

TIMES = 5

cause.SECONDS *= TIMES
cause.SCHEDULES *= TIMES
explain.SEARCHING *= TIMES
