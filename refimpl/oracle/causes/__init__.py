"""The cause of a wrong answer: which delta is where it should not be, or is not where it should be.

Every bug of LoRA serving changes what is added to some modules' outputs, for some tokens of some requests:

    y[t] += c u[t]      u: a delta that some mix-up would make (sources.py, families.py)     at modules S (regions.py)

Token by token: a right row of logits says that its token was computed right, and those before it, so that the first
wrong row names the token. There all mix-ups are tried exactly, in one batch (walk.py, mistakes.py); what leaves noise
is followed through every other request (follow.py, by_token.py), and what its tokens have in common is said (rule.py,
described.py). Often that is a matter of the engine's own steps and slots. Some engines tell them (reported.py). For
others they are worked out for many schedules (schedule.py, steps.py), and the one is taken with which it is shortest to
say (schedule_search.py).

No delta is wrong where a row reads another adapter's keys and values (kept.py).

Where several mistakes are made in every token, the engine is asked with adapters that are confined to a few modules in
turn (confined.py), and what shows there one by one must explain the failures together (apart.py).

Where an engine shows no rows of a prompt, or where mistakes lie in one another, the engine is asked with quiet adapters
(quiet.py), whose effects add up. One backward pass says what any u at any module does to the logits (adjoint.py);
pursuit.py takes the few that leave least of the error, exact.py runs those in the exact forward pass, and what they
leave of the failures as they came (find.py, grade.py) must be noise, or nothing is named.
"""
