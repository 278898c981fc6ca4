"""What `loracle bench` measures: kernels against the fewest bytes, serving in one batch, thousands of adapters."""
