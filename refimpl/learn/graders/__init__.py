"""What is right in each exercise, and the wrong answers that are known: one file each."""
