"""Random changes to training patches: `nnunet`, nnU-Net's default policy, and `light`, for short schedules.

A policy draws everything from the generator handed in, so that a patch depends on its seed alone, not on workers or
order. Mirroring is no part of a policy: its axes are a property of the data (`data.mirror_axes`).
"""

from maskmed_zoo.data.augmentation.mirror import mirror
from maskmed_zoo.data.augmentation.policy import Policy, policy_of

__all__ = ["Policy", "mirror", "policy_of"]
