"""What a user asks of a folder or a model without serving it: inspect, effect, merge."""
