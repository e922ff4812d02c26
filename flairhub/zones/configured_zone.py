"""The rasters that a zonal configuration names, as a zone."""

from __future__ import annotations

from typing import Any

from flairhub.config import Paths, ZonalConfig, load_zonal_config
from flairhub.zones.zone import RasterRequest, Zone, build_zone, zone_of_cube


def zone_of_config(config: ZonalConfig | Zone | Paths, all_masks: bool = False) -> Zone:
    """Open the rasters of a zonal configuration, whatever windows and area it asks for; no pixel is read.

    Args:
        config: The configuration, or its YAML file or files; an open zone is returned as it is.
        all_masks: Also open the quality masks of series whose clouds are not filtered.

    Raises:
        ConfigError: The configuration is wrong.
        ZoneError: Rasters are missing or do not fit each other or their dates.
        CubeError: `cube` names no cube, or a damaged one.
    """
    if isinstance(config, Zone):
        return config
    config = load_zonal_config(config)
    return _rasters_of(config, all_masks) if config.cube is None else _cube_of(config, all_masks)


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
