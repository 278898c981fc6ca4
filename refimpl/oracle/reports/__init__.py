"""What a person keeps: JSON, a page, a folder that repeats the failure."""
