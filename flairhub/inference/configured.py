"""From a zonal configuration to zone, model and run: the only module of the room that reads configurations."""

from __future__ import annotations

import os
from typing import Any

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
from flairhub.errors import ConfigError, UsageError, WeightsError, ZoneError
from flairhub.inference.map_plan import Style, fitted, map_sizes, output_geobox, output_ratio_of, plan_axes
from flairhub.inference.model_ref import ModelRef, bundle_ref, choose_device, published_ref
from flairhub.inference.outputs import map_name
from flairhub.inference.run import ZonalResult, write_zone
from flairhub.inference.run_identity import check_absent, is_of_config
from flairhub.inference.sidecars import Extras
from flairhub.inference.values import refuse_trouble
from flairhub.jobs import try_folder
from flairhub.modalities import LABELS
from flairhub.progress import Progress
from flairhub.timeseries import check_channels
from flairhub.zones import RasterRequest, Zone, build_zone, with_area, zone_of_cube


def open_zone(config: ZonalConfig | Zone | Paths, *, aoi: Any = None, all_masks: bool = False) -> Zone:
    """Open the rasters of a zonal configuration: headers and date files are checked, no pixel is read.

    Args:
        config: The configuration, or its YAML file or files; an open zone keeps its rasters.
        aoi: Only this area is mapped, instead of the configuration's `aoi`; as for `flairhub.zone`.
        all_masks: Also open the quality masks of series whose clouds are not filtered, to ingest them.

    Raises:
        ConfigError: The configuration is wrong, or windows do not fit the rasters' pixels.
        ZoneError: Rasters are missing or do not fit each other, their dates or their channels, or the area does not.
        CubeError: `cube` names no cube, or a damaged one.
    """
    if isinstance(config, Zone):
        return with_area(config, aoi)
    config = load_zonal_config(config)
    try:
        zone = _rasters_of(config, all_masks) if config.cube is None else _cube_of(config, all_masks)
        sizes = map_sizes(zone)
        plan_axes(zone, sizes)
        output_geobox(zone, output_ratio_of(zone, sizes))
    except UsageError as error:
        raise ConfigError("zonal configuration", [str(error)]) from None
    for name, block in config.modalities.blocks():
        if block.bands is not None:
            continue  # channels count the published bands, and go by name
        try:
            check_channels(block.channels or (), len(zone.rasters[name].bands))
        except UsageError as error:
            raise ZoneError(f"modalities.{name}.channels: {zone.rasters[name].where}: {error}") from None
    return with_area(zone, config.aoi.given if aoi is None and config.aoi is not None else aoi)


def _cube_of(config: ZonalConfig, all_masks: bool) -> Zone:
    assert config.cube is not None
    unfiltered = [name for name, block in config.modalities.blocks() if getattr(block, "filter_clouds", None) is False]
    return zone_of_cube(
        config.cube,
        config.roi,
        config.modalities.active,
        without_mask=() if all_masks else unfiltered,
        suggested=_suggested(config),
    )


def _rasters_of(config: ZonalConfig, all_masks: bool) -> Zone:
    requests = []
    for name, block in config.modalities.blocks():
        filtered = getattr(block, "filter_clouds_img_path", None)
        if getattr(block, "filter_clouds", None) is False and not all_masks:
            filtered = None
        requests.append(
            RasterRequest(
                name=name,
                path=block.input_img_path,
                dates_path=getattr(block, "dates_txt", None),
                quality_path=filtered,
                key=f"modalities.{name}",
                bands=block.bands,
            )
        )
    return build_zone(requests, resample=config.align == "resample", suggested=_suggested(config))


def _suggested(config: ZonalConfig) -> dict[str, Any]:
    return {
        "window_px": config.img_pixels_detection,
        "margin_px": config.margin,
        "output_px_m": config.output_px_meters,
        "batch_size": config.batch_size,
    }


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
