"""What a run's queries are and where they look. The number stands here for the command line, which needs no more."""

VALIDATION_CASES = 4
"""How many validation cases are explained where no images are given and no number is."""
