"""From published weights to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flairhub.config import MultitempModel, TrainConfig, input_preparations, label_tasks
from flairhub.errors import OutputExistsError
from flairhub.jobs import output_folder, refusals, sha256_of
from flairhub.modalities import modality
from flairhub.models.bundle import MANIFEST, save_bundle
from flairhub.models.network_spec import network_spec
from flairhub.models.published import Accounting, read_published

if TYPE_CHECKING:
    from flairhub.config import ZonalConfig


def convert(
    weights: str | Path,
    config: TrainConfig | ZonalConfig,
    bundle: str | Path,
    *,
    reinit_heads: bool = False,
    partial: bool = False,
    overwrite: bool = False,
) -> Accounting:
    """Make a bundle of published weights.

    Args:
        weights: File, one of `WEIGHTS_SUFFIXES`, or a bundle.
        config: The configuration that the weights were trained with, or a zonal one for them.
        bundle: Folder to make.
        reinit_heads: Start heads of another number of classes, and first convolutions of another number of
            channels, from random weights, for fine-tuning.
        partial: Accept weights that do not account for every tensor.
        overwrite: Replace an existing bundle.

    Returns:
        Where every tensor went.

    Raises:
        OutputExistsError: The bundle exists.
        WeightsError: The weights are unusable or do not fit the configuration.
        DataError: The system refuses to write: full disk, no permission, ...
    """
    weights, bundle = Path(weights), Path(bundle)
    if bundle.exists() and not overwrite:
        raise OutputExistsError(f"{bundle} exists already. Choose another place or pass --overwrite.")
    # Tried before anything is read.
    with refusals(bundle), output_folder(bundle.parent):
        return _convert(weights, config, bundle, reinit_heads, partial)


def _convert(
    weights: Path, config: TrainConfig | ZonalConfig, bundle: Path, reinit_heads: bool, partial: bool
) -> Accounting:
    spec = network_spec(config)
    network, accounting = read_published(weights, spec, reinit_heads=reinit_heads, partial=partial)
    if isinstance(config, TrainConfig):
        ref_date = config.models.multitemp_model.ref_date
    else:
        ref_date = config.multitemp_model_ref_date or MultitempModel().ref_date
    save_bundle(
        bundle,
        network,
        preparations=input_preparations(config),
        tasks=label_tasks(config),
        ref_date=ref_date,
        bands={name: modality(name).bands for name in spec.inputs},
        training={
            "converted_from": weights.name,
            "converted_sha256": sha256_of(weights / MANIFEST if weights.is_dir() else weights),
            "tensors": accounting.counts(),
            "reinitialised": accounting.reinitialised,
        },
    )
    return accounting
