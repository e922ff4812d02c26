"""From stored values to network input, on the device and for whole batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flairhub.config import PreProcessings
from flairhub.data.augment import Photometric, apply_dihedral, dihedral_codes
from flairhub.data.batch import Batch, PreparedBatch
from flairhub.prepare import ImagePreparation, prepare_image
from flairhub.tasks import IGNORE_INDEX
from flairhub.timeseries import SeriesPreparation

Preparation = ImagePreparation | SeriesPreparation

_streams: dict[torch.device, Any] = {}
_in_flight: deque[tuple[Any, Batch]] = deque()


def prepare_batch(
    batch: Batch,
    preparations: Mapping[str, Preparation],
    device: torch.device | str,
    augment: Tensor | None = None,
    photometric: Photometric | None = None,
) -> PreparedBatch:
    """Move a batch to the device, cast, normalise, derive elevation and augment.

    Pixels without data are 0 in every channel afterwards; where no input holds data, targets are ignored.

    Args:
        batch: Values as the loader yields them. Not changed.
        preparations: By modality, the ones the loader was made with.
        device: Where the network is.
        augment: (patch,) symmetry of every patch (`dihedral_codes`), applied to all its modalities and targets;
            None leaves them as they are.
        photometric: Brightness and contrast of images, elevation apart.
    """
    moved_batch = moved(batch, device)
    inputs, valid = {}, moved_batch.valid
    for name, values in moved_batch.inputs.items():
        preparation = preparations[name]
        if isinstance(preparation, SeriesPreparation):
            # Pixels without data are 0 already, date by date.
            inputs[name] = values.float()
        else:
            inputs[name] = _blanked(prepare_image(values, preparation), valid.get(name))
            if photometric is not None and preparation.elevation is None:
                changed = photometric.apply(inputs[name], name, batch.index.numpy(), valid.get(name))
                inputs[name] = _blanked(changed, valid.get(name))
        if name in moved_batch.present:
            present = moved_batch.present[name]
            inputs[name] = inputs[name] * present.view(-1, *[1] * (inputs[name].ndim - 1))
    targets = targets_with_data(moved_batch)
    if augment is not None:
        inputs, targets, valid = (
            {name: apply_dihedral(values, augment) for name, values in group.items()}
            for group in (inputs, targets, valid)
        )
    return PreparedBatch(inputs, moved_batch.dates, moved_batch.masks, targets, batch.index, moved_batch.present, valid)


def prepare_for_training(
    batch: Batch,
    preparations: Mapping[str, Preparation],
    device: torch.device | str,
    augmentation: PreProcessings,
    seed: int,
    epoch: int,
) -> PreparedBatch:
    """`prepare_batch` with the random changes that a configuration asks for, which follow from seed, epoch and patch.

    Args:
        batch: Values as the loader yields them. Not changed.
        preparations: By modality.
        device: Where the network is.
        augmentation: Symmetries, brightness and contrast.
        seed: Of the run.
        epoch: 0-based.
    """
    codes, photometric = None, None
    if augmentation.use_augmentation:
        codes = dihedral_codes(batch.index.numpy(), seed, epoch)
    brightness, contrast = augmentation.augmentation_brightness, augmentation.augmentation_contrast
    if brightness or contrast:
        photometric = Photometric(brightness, contrast, seed, epoch)
    return prepare_batch(batch, preparations, device, codes, photometric)


def _blanked(values: Tensor, valid: Tensor | None) -> Tensor:
    """(patch, channel, y, x) with 0 where there is no data, whatever the number was: 0 times NaN would stay NaN."""
    return values if valid is None else values.masked_fill(~valid[:, None], 0)


def targets_with_data(batch: Batch) -> dict[str, Tensor]:
    """Return the targets, ignored where no input holds data: only how often a class occurs could be learned there."""
    if not batch.inputs or any(name not in batch.valid and name not in batch.present for name in batch.inputs):
        return batch.targets
    return {
        name: target.masked_fill(~_any_input(batch, (target.shape[-2], target.shape[-1])), IGNORE_INDEX)
        for name, target in batch.targets.items()
    }


def _any_input(batch: Batch, shape: tuple[int, int]) -> Tensor:
    """(patch, y, x) bool on another grid: where at least one input holds data."""
    result: Tensor | None = None
    for name in batch.inputs:
        if name not in batch.valid:
            has_data = batch.present[name][:, None, None]
        else:
            has_data = _resized(batch.valid[name], shape)
            if name in batch.present:
                has_data = has_data & batch.present[name][:, None, None]
        result = has_data if result is None else result | has_data
    assert result is not None
    return result


def _resized(valid: Tensor, shape: tuple[int, int]) -> Tensor:
    """`flairhub.validity.resized` on the device: (patch, y, x) of the pixel under each centre."""
    if valid.shape[-2:] == shape:
        return valid
    rows, cols = (
        (2 * torch.arange(wanted, device=valid.device) + 1) * size // (2 * wanted)
        for wanted, size in zip(shape, valid.shape[-2:], strict=True)
    )
    return valid[:, rows[:, None], cols]


def moved(batch: Batch, device: torch.device | str) -> Batch:
    """Return a batch on a device.

    On a GPU the copy runs on a stream of its own, so it overlaps with what the GPU still computes, and later work waits
    for it. The source is kept until the copy is done: its page-locked memory would otherwise be read into again.
    """
    target = torch.device(device)
    if target.type != "cuda":
        return batch.to(target)
    while _in_flight and _in_flight[0][0].query():
        _in_flight.popleft()
    stream = _streams.get(target)
    if stream is None:
        stream = _streams[target] = torch.cuda.Stream(target)
    with torch.cuda.stream(stream):
        result = batch.to(target)
        event = stream.record_event()
    _in_flight.append((event, batch))
    current = torch.cuda.current_stream(target)
    current.wait_event(event)
    for group in (result.inputs, result.dates, result.masks, result.targets, result.present, result.valid):
        for tensor in group.values():
            tensor.record_stream(current)
    return result
