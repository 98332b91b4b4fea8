"""Post-processing chosen on validation cases: counts of their parts (`counts`), what is tried (`candidates`), which of
it helps (`choose`), and the file of a run or a study (`postprocess`).
"""
