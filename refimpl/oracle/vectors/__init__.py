"""Test vectors: inputs and the right answers as files, for whoever cannot, or will not, run this package.

FORMAT.md says what is in them. Reading order: vector.py (what one is), write.py and read.py (on disk), bounds.py and
units.py (how far off is too far), step_lora.py and step_kv.py (vectors of single steps), models.py, scenes.py,
cases_logits.py and cases_sequences.py (vectors of whole models), make.py (all of them), tables.py, function.py and
verify.py (something under test, judged).
"""
