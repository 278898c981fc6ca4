"""What `loracle bench` measures: the kernels against the fewest bytes they could move, and serving in one batch."""
