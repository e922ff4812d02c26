"""From cube positions to batches: order, reading ahead, preparation on the device."""

from __future__ import annotations

from flairhub.data.augment import (
    FLIP_X,
    FLIP_Y,
    N_SYMMETRIES,
    Photometric,
    apply_dihedral,
    dihedral_codes,
    undo_dihedral,
)
from flairhub.data.batch import Batch, PreparedBatch
from flairhub.data.batch_reader import check_values
from flairhub.data.datasets import BatchDataset, PatchDataset
from flairhub.data.loader import BatchLoader
from flairhub.data.preparation import Preparation, prepare_batch, prepare_for_training
from flairhub.data.sampler import Sampler
from flairhub.data.workers import Transform

__all__ = [
    "FLIP_X",
    "FLIP_Y",
    "N_SYMMETRIES",
    "Batch",
    "BatchDataset",
    "BatchLoader",
    "PatchDataset",
    "Photometric",
    "Preparation",
    "PreparedBatch",
    "Sampler",
    "Transform",
    "apply_dihedral",
    "check_values",
    "dihedral_codes",
    "prepare_batch",
    "prepare_for_training",
    "undo_dihedral",
]
