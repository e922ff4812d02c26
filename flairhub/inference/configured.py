"""From a zonal configuration to zone, model and run: the only module of the room that reads configurations."""

from __future__ import annotations

import os

from flairhub.config import (
    WEIGHTS_KINDS,
    Paths,
    ZonalConfig,
    config_hash,
    input_preparations,
    label_tasks,
    load_zonal_config,
    resolved_yaml,
    with_bundle,
)
from flairhub.errors import ConfigError, UsageError, WeightsError
from flairhub.inference.map_plan import Style, fitted
from flairhub.inference.model_ref import ModelRef, bundle_ref, choose_device, published_ref
from flairhub.inference.opening import open_zone
from flairhub.inference.outputs import map_name
from flairhub.inference.run import ZonalResult, write_zone
from flairhub.inference.run_identity import check_absent, is_of_config
from flairhub.inference.sidecars import Extras
from flairhub.inference.values import refuse_trouble
from flairhub.jobs import try_folder
from flairhub.modalities import LABELS
from flairhub.progress import Progress
from flairhub.zones import Zone


def zone_model(config: ZonalConfig, zone: Zone) -> ModelRef:
    """Return the model of a zonal configuration: a bundle, or published weights that the configuration describes.

    Raises:
        WeightsError: The weights are missing or damaged.
        ConfigError: The configuration contradicts the bundle, or asks for a GPU that is not there.
    """
    path = config.model_weights
    if not path.exists():
        kind = "bundle folder" if config.is_bundle else "weights file"
        raise WeightsError(f"model_weights: no {kind} {path}. Expected a bundle folder or a {WEIGHTS_KINDS}.")
    try:
        device = choose_device(config.use_gpu)
    except UsageError as error:
        raise ConfigError("zonal configuration", [str(error)]) from None
    if config.is_bundle:
        ref, description = bundle_ref(path, device)
        preparations, tasks = with_bundle(config, **description)
        return ref.with_choice(preparations, tasks)
    from flairhub.models import network_spec

    sizes = {name: int(config.img_pixels_detection / zone.ratio(name)) for name in zone.rasters}
    spec = network_spec(config, sizes=sizes)
    return published_ref(path, spec, input_preparations(config), label_tasks(config), device)


def run_zonal(
    config: ZonalConfig | Paths,
    *,
    overwrite: bool = False,
    resume: bool = True,
    workers: int | None = None,
    scheduler: str | None = None,
    lock: bool = True,
    check: bool = True,
    progress: Progress | None = None,
) -> ZonalResult:
    """Map the zone of a configuration: the `flairhub zonal` command.

    Args:
        config: The configuration, or its YAML file.
        overwrite: Replace existing maps, and unfinished work of another model, configuration or data.
        resume: Continue a killed run; False starts over.
        workers: Threads that read and prepare beside the network; default `workers`, else `num_worker`, else 2.
        scheduler: None or `threads`, `processes`, or a dask scheduler's address; default the configuration's.
        lock: Use the locks of the file system; False only where it has none.
        check: Look at a sample of the pixels first, as `flairhub check` does, and refuse what it calls trouble.
        progress: Told about finished blocks and pieces.

    Raises:
        ConfigError: The configuration is wrong or contradicts the bundle.
        OutputExistsError: A map exists already, or unfinished work of another run does.
        OutputError: The system refuses to write to `output_path`; tried before anything is computed.
        WeightsError: The weights are missing, damaged or of another network.
        ZoneError: The rasters do not fit each other or the model, or the network gives no finite numbers for too many
            pixels.
    """
    config = load_zonal_config(config)
    overwrite = overwrite or config.overwrite
    folder, name = config.output_path, config.output_name
    try_output(config)
    if not overwrite and not (folder / f".{name}.unfinished").exists():
        # Before any file is opened; the tasks of a bundle are checked again once they are known.
        tasks = [task.name for task in config.active_tasks]
        # A map of the same configuration may be the one that is asked for.
        if not is_of_config(folder / f"{name}_config.yaml", resolved_yaml(config)):
            check_absent(folder, [map_name(name, task, config.output_type) for task in tasks])
    extras_of(config)
    zone = open_zone(config)
    ref = zone_model(config, zone)
    if check:
        refuse_trouble(zone, fitted(zone, ref))
    if config.threads is not None:
        import torch

        torch.set_num_threads(config.threads)
    return write_zone(
        zone,
        ref,
        folder,
        name,
        output_type=config.output_type,
        cog=config.cog_conversion,
        tiles=config.write_dataframe,
        block_px=config.block_px,
        overwrite=overwrite,
        resume=resume,
        lock=lock,
        workers=workers or config.workers or config.num_worker or min(2, os.cpu_count() or 1),
        scheduler=scheduler or config.scheduler,
        config_yaml=resolved_yaml(config),
        config_hash=config_hash(config),
        style=style_of(config),
        extras=extras_of(config),
        progress=progress,
    )


def try_output(config: ZonalConfig) -> None:
    """See whether maps can be written, before anything is computed.

    Raises:
        OutputError: The system refuses.
    """
    label = max(LABELS, key=len)
    try_folder(config.output_path, f"{map_name(config.output_name, label, 'confidence')}.aux.xml")


def style_of(config: ZonalConfig) -> Style:
    """Return how the configuration wants windows to become a map."""
    return Style(config.overlap == "blend", config.precision == "bf16", config.flips, config.missing == "drop")


def extras_of(config: ZonalConfig) -> Extras:
    """Return the files that the configuration wants beside the maps.

    Raises:
        ConfigError: One of them cannot be written.
    """
    extras = Extras(
        confidence=config.write_confidence,
        polygons=config.write_polygons or None,
        min_area_m2=config.polygon_min_area_m2,
        stac=config.write_stac,
        language=config.class_language,
    )
    try:
        extras.check(config.output_type)
    except UsageError as error:
        raise ConfigError("zonal configuration", [str(error)]) from None
    return extras
