"""Test vectors: inputs and the right answers as files, for whoever cannot, or will not, run this package.

FORMAT.md says what is in them. Reading order: vector.py (what one is), write.py and read.py (on disk), bounds.py and
units.py (how far off is too far), step_lora.py and step_kv.py (vectors of single steps), models.py, steps_json.py and
whole_model.py (vectors of whole models), bugs.py (what they are made against), cases_lora.py, cases_kv.py,
cases_logits.py and cases_sequences.py (what they are about, one by one), make.py (all of them), systems.py, function.py
and verify.py (something under test, judged).
"""
