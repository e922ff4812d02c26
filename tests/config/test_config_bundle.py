"""A zonal configuration beside a bundle: repeated values pass, contradictions do not."""

from __future__ import annotations

from typing import Any

import pytest

from flairhub.config import with_bundle, zonal_config_from_dict
from flairhub.errors import ConfigError
from flairhub.prepare import ImagePreparation
from flairhub.tasks import default_task
from flairhub.timeseries import CloudFilter, SeriesPreparation
from tests.helpers.config_values import COSIA, LPIS

S2 = "SENTINEL2_TS"
BUNDLE: dict[str, Any] = {
    "preparations": {
        "AERIAL_RGBI": ImagePreparation((4, 1, 2), None, "custom", (10, 20, 30), (1, 2, 3)),
        "DEM_ELEV": ImagePreparation(None, "ndsm", "custom", (5,), (6,)),
        S2: SeriesPreparation((1, 2, 3), CloudFilter(), "monthly", "masked", "05-15"),
    },
    "tasks": (default_task(COSIA), default_task(LPIS)),
    "ref_date": "05-15",
    "arch": "resnet18-unet",
}


def values(**changes: Any) -> dict[str, Any]:
    modalities: dict[str, Any] = {
        "inputs": {"AERIAL_RGBI": True, "DEM_ELEV": True, S2: True},
        "AERIAL_RGBI": {"input_img_path": "a.tif"},
        "DEM_ELEV": {"input_img_path": "d.tif"},
        S2: {"input_img_path": "s.tif", "dates_txt": "s.txt"},
    }
    for name, block in changes.pop("blocks", {}).items():
        modalities[name] |= block
    return {
        "output_path": "maps",
        "output_name": "zone",
        "model_weights": "best.bundle",
        "modalities": modalities,
        **changes,
    }


def test_nothing_given_is_the_bundle():
    preparations, tasks = with_bundle(zonal_config_from_dict(values()), **BUNDLE)
    assert preparations == BUNDLE["preparations"]
    assert tasks == BUNDLE["tasks"]


def test_everything_repeated_is_the_bundle():
    blocks = {
        "AERIAL_RGBI": {"channels": [4, 1, 2], "normalization": {"means": [20, 30, 99, 10], "stds": [2, 3, 9, 1]}},
        "DEM_ELEV": {"calc_elevation": True, "normalization": {"type": "custom", "means": [5, 5], "stds": [6, 6]}},
        S2: {
            "channels": [1, 2, 3],
            "temporal_average": "monthly",
            "temporal_average_fill": "masked",
            "filter_clouds": True,
            "filter_clouds_img_path": "m.tif",
        },
    }
    tasks = [{"name": label, "class_names": dict(enumerate(default_task(label).names))} for label in (LPIS, COSIA)]
    given = values(blocks=blocks, tasks=tasks, monotemp_arch="resnet18-unet", multitemp_model_ref_date="05-15")
    preparations, chosen = with_bundle(zonal_config_from_dict(given), **BUNDLE)
    assert preparations == BUNDLE["preparations"]
    assert chosen == BUNDLE["tasks"]


def test_tasks_and_filter_are_the_zones_choice():
    blocks = {S2: {"filter_clouds": False}}
    config = zonal_config_from_dict(values(blocks=blocks, tasks=[{"name": LPIS}, {"name": COSIA, "active": False}]))
    preparations, tasks = with_bundle(config, **BUNDLE)
    assert preparations[S2].cloud_filter is None
    assert preparations[S2].average == "monthly"
    assert tasks == (default_task(LPIS),)
    limits = {"filter_clouds": True, "filter_clouds_img_path": "m.tif", "filter_clouds_max_cloud": 30}
    config = zonal_config_from_dict(values(blocks={S2: limits}))
    assert with_bundle(config, **BUNDLE)[0][S2].cloud_filter == CloudFilter(30, 1, 0.05)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"blocks": {"AERIAL_RGBI": {"channels": [1, 2, 3]}}},
            "modalities.AERIAL_RGBI.channels: got [1, 2, 3], but the bundle was made with [4, 1, 2]. Remove the key",
        ),
        (
            {"blocks": {"AERIAL_RGBI": {"normalization": {"type": "scaling"}}}},
            "modalities.AERIAL_RGBI.normalization.type: got scaling, but the bundle was made with custom.",
        ),
        (
            {
                "blocks": {
                    "AERIAL_RGBI": {"channels": [4, 1, 2], "normalization": {"means": [10, 20, 31], "stds": [1, 2, 3]}}
                }
            },
            "modalities.AERIAL_RGBI.normalization.means: got [10.0, 20.0, 31.0], but the bundle was made with [10, 20,",
        ),
        (
            {"blocks": {"DEM_ELEV": {"calc_elevation": True, "calc_elevation_stack_dsm": True}}},
            "modalities.DEM_ELEV.calc_elevation: got dsm_ndsm, but the bundle was made with ndsm.",
        ),
        (
            {"blocks": {S2: {"temporal_average": False}}},
            f"modalities.{S2}.temporal_average: got False, but the bundle was made with monthly.",
        ),
        (
            {"blocks": {S2: {"temporal_average_fill": "published"}}},
            f"modalities.{S2}.temporal_average_fill: got published, but the bundle was made with masked.",
        ),
        ({"monotemp_arch": "resnet34-unet"}, "monotemp_arch: got resnet34-unet, but the bundle was made with resnet18"),
        (
            {"multitemp_model_ref_date": "01-01"},
            "multitemp_model_ref_date: got 01-01, but the bundle was made with 05-",
        ),
        (
            {"tasks": [{"name": COSIA, "class_names": {0: "a", 1: "b"}}]},
            "tasks.0.class_names: class 0 differs from the bundle's.",
        ),
        (
            {"tasks": [{"name": COSIA, "class_names": dict(enumerate(default_task(COSIA).names[:5]))}]},
            "tasks.0.class_names: 5 classes instead of 19 from the bundle's.",
        ),
    ],
)
def test_contradictions(changes, expected):
    with pytest.raises(ConfigError) as error:
        with_bundle(zonal_config_from_dict(values(**changes)), **BUNDLE)
    (problem,) = error.value.problems
    assert problem.startswith(expected)


def test_other_inputs_and_tasks():
    given = values(tasks=[{"name": LPIS}])
    given["modalities"]["inputs"] = {"AERIAL_RGBI": True, "SPOT_RGBI": True, S2: True}
    given["modalities"]["SPOT_RGBI"] = {"input_img_path": "p.tif"}
    with pytest.raises(ConfigError) as error:
        with_bundle(zonal_config_from_dict(given), **(BUNDLE | {"tasks": (default_task(COSIA),)}))
    assert error.value.problems == (
        "modalities.inputs.SPOT_RGBI: the bundle has no such input. It has AERIAL_RGBI, DEM_ELEV, SENTINEL2_TS. "
        "Set it to false.",
        "modalities.inputs.DEM_ELEV: the bundle needs this input. Set it to true and give its raster.",
        f"tasks.0.name: the bundle does not predict {LPIS}, only {COSIA}. Set active: false.",
    )
