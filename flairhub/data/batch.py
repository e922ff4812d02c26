"""What the loader yields and what the network takes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

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

        def moved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.to(device, non_blocking=non_blocking) for name, tensor in tensors.items()}  # type: ignore[call-overload]

        return replace(
            self,
            inputs=moved(self.inputs),
            dates=moved(self.dates),
            masks=moved(self.masks),
            targets=moved(self.targets),
            present=moved(self.present),
            valid=moved(self.valid),
        )


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
