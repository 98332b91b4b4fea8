"""nnU-Net's own preprocessing and export of one case, fed with our canonical arrays and a plan made up for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

RESAMPLING: dict[str, Any] = {
    f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in ("data", "seg", "probabilities")
} | {
    "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
    "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
    "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
}
SCHEMES = {
    "ct": "CTNormalization",
    "zscore": "ZScoreNormalization",
    "none": "NoNormalization",
    "rescale_to_0_1": "RescaleTo01Normalization",
    "rgb_to_0_1": "RGBTo01Normalization",
}


class Oracle:
    """A plan for one spacing (z, y, x), one scheme per channel, statistics per channel, and labels by name."""

    def __init__(
        self,
        spacing: Sequence[float],
        schemes: Sequence[str],
        statistics: Sequence[dict[str, float]] = (),
        labels: dict[str, int] | None = None,
        *,
        use_mask_for_norm: bool = False,
    ) -> None:
        channels = {str(index): scheme for index, scheme in enumerate(schemes)}
        self.dataset = {"labels": labels or {"background": 0, "x": 1}, "channel_names": channels}
        self.plans = PlansManager(
            {
                "transpose_forward": [0, 1, 2],
                "transpose_backward": [0, 1, 2],
                "foreground_intensity_properties_per_channel": {str(i): s for i, s in enumerate(statistics or [{}])}
                | {str(i): {} for i in range(len(statistics), len(schemes))},
            }
        )
        self.configuration = ConfigurationManager(
            RESAMPLING
            | {
                "architecture": {},
                "spacing": [float(size) for size in spacing],
                "normalization_schemes": [SCHEMES[scheme] for scheme in schemes],
                "use_mask_for_norm": [use_mask_for_norm and scheme == "zscore" for scheme in schemes],
            }
        )

    def preprocess(
        self, image: np.ndarray, labels: np.ndarray | None, spacing: Sequence[float]
    ) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """Image (c z y x), labels (z y x) and nnU-Net's properties, of a case as read."""
        data, seg, properties = DefaultPreprocessor(verbose=False).run_case_npy(
            image,
            None if labels is None else labels[None],
            {"spacing": list(spacing)},
            self.plans,
            self.configuration,
            self.dataset,
        )
        return np.asarray(data), np.asarray(seg)[0], properties

    def export(self, probabilities: np.ndarray, properties: dict[str, Any]) -> np.ndarray:
        """The label map (z y x) of probabilities (k z y x) at the plan's spacing, on the voxels of the file."""
        threads = torch.get_num_threads()
        found = convert_predicted_logits_to_segmentation_with_correct_shape(
            probabilities,
            self.plans,
            self.configuration,
            self.plans.get_label_manager(self.dataset),
            properties,
            num_threads_torch=threads,
        )
        return np.asarray(found)
