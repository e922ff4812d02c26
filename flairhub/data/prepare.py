"""From stored values to network input, on the device and for whole batches."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flairhub.data.augment import Photometric, apply_dihedral
from flairhub.data.batch import Batch, PreparedBatch
from flairhub.data.copies import moved
from flairhub.prepare import ImagePreparation, prepare_image
from flairhub.timeseries import SeriesPreparation

Preparation = ImagePreparation | SeriesPreparation


def prepare_batch(
    batch: Batch,
    preparations: Mapping[str, Preparation],
    device: torch.device | str,
    augment: Tensor | None = None,
    photometric: Photometric | None = None,
) -> PreparedBatch:
    """Move a batch to the device, cast, normalise, derive elevation and augment.

    Args:
        batch: Values as the loader yields them. Not changed.
        preparations: By modality, the ones the loader was made with.
        device: Where the network is.
        augment: (patch,) symmetry of every patch (`dihedral_codes`), applied to all its modalities and targets;
            None leaves them as they are.
        photometric: Brightness and contrast of images, elevation apart.
    """
    there = moved(batch, device)
    inputs = {}
    for name, values in there.inputs.items():
        preparation = preparations[name]
        if isinstance(preparation, SeriesPreparation):
            inputs[name] = values.float()
        else:
            inputs[name] = prepare_image(values, preparation)
            if photometric is not None and preparation.elevation is None:
                inputs[name] = photometric.apply(inputs[name], name, batch.index.numpy())
        if name in there.present:
            here = there.present[name]
            inputs[name] = inputs[name] * here.view(-1, *[1] * (inputs[name].ndim - 1))
    targets = there.targets
    if augment is not None:
        inputs = {name: apply_dihedral(values, augment) for name, values in inputs.items()}
        targets = {name: apply_dihedral(values, augment) for name, values in targets.items()}
    return PreparedBatch(inputs, there.dates, there.masks, targets, batch.index, there.present)
