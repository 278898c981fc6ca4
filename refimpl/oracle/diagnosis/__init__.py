"""Which bug explains an error, where it is, and what else would have been seen."""
