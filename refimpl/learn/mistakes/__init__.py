"""The wrong answers that are known, one file for each exercise: MISTAKES."""
