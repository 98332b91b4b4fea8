"""An earlier name of `data.fingerprint`, `data.resample` and `data.normalize`, for programs written against it."""

from maskmed_zoo.data.fingerprint import Fingerprint, IntensityStats, fingerprint
from maskmed_zoo.data.normalize import normalize, schemes
from maskmed_zoo.data.resample import resample_image, resample_labels, target_shape

__all__ = [
    "Fingerprint",
    "IntensityStats",
    "fingerprint",
    "normalize",
    "resample_image",
    "resample_labels",
    "schemes",
    "target_shape",
]
