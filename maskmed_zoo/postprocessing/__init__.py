"""Post-processing chosen on validation cases: what is read of them (`place`), counts of their parts (`counts`), what
thresholds change (`thresholds`) by probabilities that are computed again (`recomputed`), what is tried (`candidates`),
which of it helps (`choose`), and the file of a run or a study (`postprocess`).
"""
