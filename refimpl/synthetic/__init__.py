"""Random models and adapters, in which a bug cannot hide: for the oracle, its vectors, the benchmarks and the tests.

Every rule is there because a real bug once survived a test without it: random signed B, never zero; adapters pairwise
different, each about as large as the base, whatever its scale; activations near 1, as in a trained model. Ranks that
are no powers of two, alpha / r that is not 1, rsLoRA and targets are the PeftConfig's: whoever draws an adapter chooses
them. What one engine is asked about is chosen in oracle/cases/variety.py.

This room needs the core alone, so that every other can draw from it.
"""
