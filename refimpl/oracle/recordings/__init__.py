"""Answers of an engine that ran elsewhere, kept as files and judged like a live one's."""
