"""From a data set to a recipe: spacing, patch, levels, batch and normalization after nnU-Net's rules, for any network.

The fingerprint (`data.fingerprint`) gives spacing and shape (`grid`); those give the patches that come into question
(`levels`); a budget (`budget`) and what a network needs (`nnunet`, `footprint`) decide which (`choose`); `reasons` says
why, `text` writes it down.
"""
