"""Image preparation: band choice, elevation, normalisation.

The one path for training and zonal inference, for numpy arrays on the CPU and torch tensors on any device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from flairhub.errors import UsageError
from flairhub.timeseries import check_channels

Normalisation = Literal["custom", "scaling", "without"]
Elevation = Literal["dsm_dtm", "ndsm", "dsm_ndsm"]


@dataclass(frozen=True)
class ImagePreparation:
    """How the bands of an image become network input.

    Attributes:
        channels: 1-based file bands in network order; None keeps all.
        elevation: For (DSM, DTM) files: `dsm_dtm` as they are, `ndsm` = DSM - DTM, `dsm_ndsm` = (DSM, DSM - DTM).
            None for all other images.
        normalisation: `custom` = (x - mean) / std, `scaling` = integers / maximum of their dtype, `without`.
        means: For `custom`, one per channel in network order.
        stds: Likewise, all above 0.
    """

    channels: tuple[int, ...] | None = None
    elevation: Elevation | None = None
    normalisation: Normalisation = "without"
    means: tuple[float, ...] = ()
    stds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.normalisation not in get_args(Normalisation):
            raise UsageError(f"normalisation: got {self.normalisation!r}, expected one of {get_args(Normalisation)}.")
        if self.elevation is not None and self.elevation not in get_args(Elevation):
            raise UsageError(f"elevation: got {self.elevation!r}, expected one of {get_args(Elevation)}.")
        if self.normalisation == "custom":
            if len(self.means) != len(self.stds) or not self.means:
                raise UsageError(f"{len(self.means)} means and {len(self.stds)} stds: one of each per channel.")
            if not all(std > 0 and np.isfinite(std) for std in self.stds):
                raise UsageError(f"stds must be positive and finite, got {list(self.stds)}.")
            if not np.isfinite(self.means).all():
                raise UsageError(f"means must be finite, got {list(self.means)}.")

    def n_channels(self, n_bands: int) -> int:
        """Number of channels the network sees for files of `n_bands` bands."""
        if self.elevation is not None:
            return 1 if self.elevation == "ndsm" else 2
        return n_bands if self.channels is None else len(self.channels)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary, the inverse of `from_json`."""
        fields = asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> ImagePreparation:
        """Build from the dictionary of `to_json`."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return cls(**values)


def channel_statistics(
    values: tuple[float, ...], channels: tuple[int, ...] | None, n_bands: int, key: str
) -> tuple[float, ...]:
    """Return one statistic per selected channel.

    A list as long as the selection belongs to the selected channels in their order (the published meaning); a list
    as long as the file's bands belongs to the bands and is selected like them.

    Raises:
        UsageError: The list fits neither; the message starts with `key`.
    """
    selection = tuple(range(1, n_bands + 1)) if channels is None else channels
    if len(values) == len(selection):
        return tuple(values)
    if len(values) == n_bands:
        return tuple(values[channel - 1] for channel in selection)
    raise UsageError(
        f"{key}: got {len(values)} values, expected {len(selection)} (one per selected channel) "
        f"or {n_bands} (one per band of the file)."
    )


def prepare_image(values: Any, preparation: ImagePreparation) -> Any:
    """Select bands, derive heights and normalise.

    Args:
        values: (..., band, y, x) numpy array or torch tensor, native dtype. Not changed.
        preparation: What to do.

    Returns:
        (..., channel, y, x) float32 of the same library and device.

    Raises:
        UsageError: Bands and preparation do not fit.
    """
    n_bands = values.shape[-3]
    scale = _dtype_maximum(values) if preparation.normalisation == "scaling" else None
    # The result is memory of ours, which may be changed in place: passes over new memory cost most here.
    in_place = True
    if preparation.elevation is not None:
        result = _derive_elevation(_float32(values), preparation.elevation)
        in_place = preparation.elevation != "dsm_dtm" or result.dtype != values.dtype
    elif preparation.channels is None or preparation.channels == tuple(range(1, n_bands + 1)):
        result = _float32(values)
        in_place = result.dtype != values.dtype
    else:
        check_channels(preparation.channels, n_bands)
        result = _selected(values, preparation.channels)
    if scale is not None:
        divisor = np.float32(scale).item()
        return _divided(result, divisor) if in_place else result / divisor
    if preparation.normalisation == "custom":
        if len(preparation.means) != result.shape[-3]:
            raise UsageError(
                f"{len(preparation.means)} means for {result.shape[-3]} channels: one mean and std per channel."
            )
        means, stds = _column(preparation.means, result), _column(preparation.stds, result)
        return _divided(_less(result, means) if in_place else result - means, stds)
    return result


def _less(values: Any, other: Any) -> Any:
    values -= other
    return values


def _divided(values: Any, divisor: Any) -> Any:
    values /= divisor
    return values


def _selected(values: Any, channels: tuple[int, ...]) -> Any:
    """Copy channels, in their order, to float32 one by one: torch cannot index unsigned 16-bit tensors."""
    shape = (*values.shape[:-3], len(channels), *values.shape[-2:])
    if isinstance(values, np.ndarray):
        result = np.empty(shape, np.float32)
    else:
        # Starting from nothing brings device and library along without an import of torch.
        result = values.new_empty((0,)).float().new_empty(shape)
    for position, channel in enumerate(channels):
        result[..., position, :, :] = values[..., channel - 1, :, :]
    return result


def _derive_elevation(heights: Any, mode: Elevation) -> Any:
    if heights.shape[-3] != 2:
        raise UsageError(f"elevation needs 2 bands (DSM, DTM), got {heights.shape[-3]}.")
    if mode == "dsm_dtm":
        return heights
    above_ground = heights[..., 0:1, :, :] - heights[..., 1:2, :, :]
    if mode == "ndsm":
        return above_ground
    if isinstance(heights, np.ndarray):
        return np.concatenate([heights[..., 0:1, :, :], above_ground], axis=-3)
    result = heights.clone()
    result[..., 1:2, :, :] = above_ground
    return result


def _float32(values: Any) -> Any:
    return values.astype(np.float32) if isinstance(values, np.ndarray) else values.float()


def _column(numbers: tuple[float, ...], like: Any) -> Any:
    column = np.asarray(numbers, dtype=np.float32).reshape(-1, 1, 1)
    if isinstance(like, np.ndarray):
        return column
    return like.new_tensor(column)


def _dtype_maximum(values: Any) -> float | None:
    name = str(values.dtype).removeprefix("torch.")
    return float(np.iinfo(name).max) if name.startswith(("int", "uint")) else None
