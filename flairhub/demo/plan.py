"""How large the made data set is and where it lies."""

from __future__ import annotations

from dataclasses import dataclass

from flairhub.demo.area import Region, pixel_factors
from flairhub.demo.imagery import Light
from flairhub.errors import UsageError

REGIONS: tuple[Region, ...] = (
    Region("D012-2019", 655_000.0, 6_360_000.0, 560.0, Light((1.0, 1.0, 1.0, 1.0), 0.0), 4.0),
    Region("D033-2020", 405_000.0, 6_420_000.0, 45.0, Light((1.04, 1.0, 0.95, 1.03), 3.0), -3.0),
    Region("D068-2021", 1_010_000.0, 6_770_000.0, 230.0, Light((0.96, 0.98, 1.03, 0.97), -2.0), 1.0),
)
"""The domains of the made data set, in three different years."""

ZONE_REGION = Region("D045-2020", 620_000.0, 6_770_000.0, 110.0, Light((1.02, 1.0, 0.98, 1.0), 1.0), 0.0)
"""Where the zone lies: a domain of its own, seen by no training."""

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class DemoPlan:
    """Sizes of the made data set.

    Attributes:
        gsd_m: Pixel size of the aerial image in metres.
        patch_px: Aerial pixels along a patch; a multiple of the coarsest modality's factor.
        roi_splits: Split of each ROI of a domain, one tuple per domain.
        roi_grid: (rows, columns) of patches in an ROI; one cell of each ROI is left out.
        zone_grid: (rows, columns) of patches the zone measures.
        arch: `models.monotemp_model.arch` of the configuration.
        epochs, batch_size: Hyperparameters of the configuration.
    """

    gsd_m: float = 1.28
    patch_px: int = 64
    roi_splits: tuple[tuple[str, ...], ...] = (
        ("train", "train", "train", "test"),
        ("train", "train", "train", "test"),
        ("train", "train", "valid", "test"),
    )
    roi_grid: tuple[int, int] = (5, 6)
    zone_grid: tuple[int, int] = (6, 8)
    arch: str = "test_resnet-segformer"
    epochs: int = 8
    batch_size: int = 8

    def __post_init__(self) -> None:
        coarsest = max(self.factors.values())
        if self.patch_px % coarsest:
            raise UsageError(f"patch_px must be a multiple of {coarsest}, got {self.patch_px}.")
        if len(self.roi_splits) > len(REGIONS):
            raise UsageError(f"at most {len(REGIONS)} domains, got {len(self.roi_splits)} in roi_splits.")
        unknown = {split for rois in self.roi_splits for split in rois} - set(SPLITS)
        if unknown:
            raise UsageError(f"unknown splits {sorted(unknown)} in roi_splits; known: {', '.join(SPLITS)}.")

    @property
    def factors(self) -> dict[str, int]:
        """Pixel size of every modality, in aerial pixels."""
        return pixel_factors(self.gsd_m)

    @property
    def patch_m(self) -> float:
        """Width and height of a patch in metres."""
        return round(self.gsd_m * self.patch_px, 6)
