"""Data sets: one reader per format giving `list[Sample]`; nothing downstream knows the format."""
