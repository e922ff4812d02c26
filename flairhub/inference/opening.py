"""The zone that a configuration names, and what its windows ask of it."""

from __future__ import annotations

from typing import Any

from flairhub.config import Paths, ZonalConfig, load_zonal_config
from flairhub.errors import ConfigError, UsageError, ZoneError
from flairhub.inference.map_plan import map_sizes, output_geobox, output_ratio_of, plan_axes
from flairhub.timeseries import check_channels
from flairhub.zones import Zone, with_area, zone_of_config


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
        zone = zone_of_config(config, all_masks)
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
