"""What the loader yields and what the network takes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Self

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Patches as they are stored, side by side.

    Attributes:
        inputs: By modality, native dtype: images (patch, band, y, x); series (patch, time, channel, y, x), padded at
            the end with zeros to the longest of the batch.
        dates: By series, (patch, time) int32, days to the reference date; 0 in padding.
        masks: By series, (patch, time) bool; False = padding or no observation.
        targets: By task, (patch, y, x) uint8 class indices, 255 = ignore.
        index: (patch,) int64, positions in the cube.
        present: By modality that some patch of the batch lacks, (patch,) bool.
        valid: By modality of which some patch has pixels without data, (patch, y, x) bool: where images hold data, or
            some date of a series does. The values of the others mean nothing.
        left_out: Labelled pixels that became 255 because no input holds data there.
        waited_s: Seconds the consumer was blocked until this batch was ready.
    """

    inputs: dict[str, Tensor]
    dates: dict[str, Tensor]
    masks: dict[str, Tensor]
    targets: dict[str, Tensor]
    index: Tensor
    present: dict[str, Tensor] = field(default_factory=dict)
    valid: dict[str, Tensor] = field(default_factory=dict)
    left_out: int = 0
    waited_s: float = 0.0

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: object, non_blocking: bool = True) -> Self:
        """Return the same batch on another device."""
        return replace(self, **_moved(self, device, non_blocking))


@dataclass(frozen=True)
class PreparedBatch:
    """Network input and truth on one device.

    Attributes:
        inputs: By modality, float32: images (patch, channel, y, x), normalised; series (patch, time, channel, y, x); 0
            where a pixel holds no data.
        dates: By series, (patch, time) int32, days to the reference date.
        masks: By series, (patch, time) bool; False = padding or no observation.
        targets: By task, (patch, y, x) uint8 class indices, 255 = ignore: also where no input holds data.
        index: (patch,) int64, positions in the cube, on the CPU.
        present: By modality that some patch of the batch lacks, (patch,) bool; their inputs are zero.
        valid: By modality of which some patch has pixels without data, (patch, y, x) bool.
    """

    inputs: dict[str, Tensor]
    dates: dict[str, Tensor]
    masks: dict[str, Tensor]
    targets: dict[str, Tensor]
    index: Tensor
    present: dict[str, Tensor] = field(default_factory=dict)
    valid: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: object, non_blocking: bool = True) -> Self:
        """Return the same batch on another device; Lightning moves batches by it."""
        return replace(self, **_moved(self, device, non_blocking))


def _moved(batch: Batch | PreparedBatch, device: object, non_blocking: bool) -> dict[str, Any]:
    groups = ("inputs", "dates", "masks", "targets", "present", "valid")
    return {
        group: {
            name: tensor.to(device, non_blocking=non_blocking)  # type: ignore[call-overload]
            for name, tensor in getattr(batch, group).items()
        }
        for group in groups
    }
