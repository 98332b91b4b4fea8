"""An earlier name of `data.image` and `data.formats`, for programs that were written against it."""

from maskmed_zoo.data.formats import read_image, read_labels, write_labels
from maskmed_zoo.data.image import Geometry, Volume, check_same_geometry

__all__ = ["Geometry", "Volume", "check_same_geometry", "read_image", "read_labels", "write_labels"]
