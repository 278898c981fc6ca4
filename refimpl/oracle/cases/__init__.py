"""What an engine is asked: a base, its adapters, and batches or sequences of requests."""
