"""The cause of a wrong answer, by a fit: which delta is where it should not be, or is not where it should be.

Every bug of LoRA serving changes what is added to some modules' outputs, for some tokens of some requests:

    y[t] += c u[t]      u: a delta that some mix-up would make (sources.py)     at modules S, for tokens T (regions.py)

One backward pass says what any u at any module does to the logits (adjoint.py), so that tens of thousands of such
changes are laid beside the error at once; pursuit.py takes the few that leave least of it, and exact.py runs those in
the exact forward pass: what is left must be noise, or nothing is named. The engine is asked with quiet adapters
(quiet.py), where effects add up; what they said must then explain the failures as they came (find.py), and condition.py
says what the requests have in common for which it holds.
"""
