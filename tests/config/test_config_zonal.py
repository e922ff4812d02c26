"""What can be wrong in a zonal configuration, and what a bundle makes optional."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from flairhub.config import load_zonal_config, zonal_config_from_dict
from flairhub.errors import ConfigError
from tests.helpers.config_values import zonal_values

GONE = object()
WITH_FILE = "with a weights file (a bundle folder as model_weights would know it)."
S2, IMAGES = "SENTINEL2_TS", "AERIAL_RGBI, AERIAL-RLT_PAN, DEM_ELEV, SPOT_RGBI"
SERIES = "SENTINEL2_TS, SENTINEL1-ASC_TS, SENTINEL1-DESC_TS"


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """The complete configuration after changes by key path; GONE removes the key."""
    values = zonal_values()
    for key, value in changes.items():
        *parents, last = key.split(".")
        holder: Any = values
        for part in parents:
            holder = holder[int(part)] if isinstance(holder, list) else holder[part]
        if value is GONE:
            del holder[last]
        else:
            holder[last] = value
    return values


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"output_path": GONE}, "output_path: required, but missing."),
        ({"output_name": "a/b"}, "output_name: got 'a/b', expected a plain name for files"),
        ({"model_weights": None}, "model_weights: required, but missing."),
        ({"num_workers": 3}, "num_workers: unknown key. It is called num_worker here."),
        ({"margins": 3}, "margins: unknown key. Did you mean margin?"),
        ({"output_type": "prob"}, "output_type: got 'prob', expected one of 'argmax', 'class_prob'."),
        ({"margin": 128}, "margin: got 128, expected less than half of img_pixels_detection = 256."),
        ({"margin": -1}, "margin: got -1, expected at least 0."),
        ({"output_px_meters": 0}, "output_px_meters: got 0, expected a number above 0."),
        ({"use_gpu": "cuda"}, "use_gpu: got 'cuda', expected true or false."),
        ({"modalities.inputs": {}}, "modalities.inputs: no input is enabled."),
        ({"modalities.AERIAL": {}}, "modalities.AERIAL: unknown key. Did you mean AERIAL_RGBI?"),
        (
            {"modalities.SPOT_RGBI": None},
            "modalities.SPOT_RGBI: required because this input is enabled, but missing.",
        ),
        (
            {"modalities.SPOT_RGBI.input_img_path": ""},
            "modalities.SPOT_RGBI.input_img_path: required because this input is enabled, but missing.",
        ),
        ({"modalities.SPOT_RGBI.channels": [5]}, "modalities.SPOT_RGBI.channels: band 5 does not exist. Bands of"),
        (
            {"modalities.SPOT_RGBI.calc_elevation": True},
            "modalities.SPOT_RGBI.calc_elevation: unknown key. Did you mean modalities.DEM_ELEV.calc_elevation?",
        ),
        (
            {"modalities.SPOT_RGBI.normalization.means": [1]},
            "modalities.SPOT_RGBI.normalization.means: got 1 values, expected 4 (one per selected channel)",
        ),
        (
            {"modalities.SPOT_RGBI.normalization.stds": [1, 1, 1, -1]},
            "modalities.SPOT_RGBI.normalization.stds: got [1.0, 1.0, 1.0, -1.0], expected numbers above 0",
        ),
        (
            {"modalities.SPOT_RGBI.normalization": GONE},
            "modalities.SPOT_RGBI.normalization: required with a weights file, but missing",
        ),
        (
            {"modalities.DEM_ELEV.channels": [2]},
            "modalities.DEM_ELEV.channels: got [2], expected [1, 2] or no list",
        ),
        (
            {f"modalities.{S2}.dates_txt": None},
            f"modalities.{S2}.dates_txt: required because this input is enabled, but missing.",
        ),
        (
            {"modalities.SENTINEL1-ASC_TS.dates_txt": None},
            "modalities.SENTINEL1-ASC_TS.dates_txt: required because temporal_average needs the dates, but missing.",
        ),
        (
            {f"modalities.{S2}.filter_clouds_img_path": None},
            f"modalities.{S2}.filter_clouds_img_path: required because filter_clouds is true, but missing.",
        ),
        (
            {f"modalities.{S2}.temporal_average": "weekly"},
            f"modalities.{S2}.temporal_average: got 'weekly', expected one of False, 'monthly', 'semi-monthly'.",
        ),
        ({"monotemp_arch": None}, f"monotemp_arch: required for {IMAGES} {WITH_FILE}"),
        ({"monotemp_arch": "unet"}, "monotemp_arch: got 'unet', expected <encoder>-<decoder>"),
        ({"multitemp_model_ref_date": None}, f"multitemp_model_ref_date: required for {SERIES} {WITH_FILE}"),
        ({"multitemp_model_ref_date": "13-01"}, "multitemp_model_ref_date: got '13-01', expected a day of every year"),
        ({"tasks.0.active": False}, f"tasks: no task is active: one is required {WITH_FILE}"),
        ({"tasks.0.active": False, "model_weights": "best.bundle"}, "tasks: no task is active. Set active: true"),
        ({"tasks.0.name": "COSIA"}, "tasks.0.name: unknown label set 'COSIA'. Did you mean AERIAL_LABEL-COSIA?"),
        ({"tasks.1.name": "AERIAL_LABEL-COSIA"}, "tasks.1.name: AERIAL_LABEL-COSIA is given twice. Keep one."),
        ({"tasks.0.class_names": {1: "a"}}, "tasks.0.class_names: class indices must be 0..0, got [1]."),
        ({"tasks.0.classes": 3}, "tasks.0.classes: unknown key. Did you mean class_names?"),
    ],
)
def test_single_problem(changes, expected):
    with pytest.raises(ConfigError) as error:
        zonal_config_from_dict(changed(changes))
    (problem,) = error.value.problems
    assert problem.startswith(expected)


def test_a_bundle_needs_only_rasters():
    values = changed({"model_weights": "best.bundle", "monotemp_arch": GONE, "multitemp_model_ref_date": GONE})
    del values["tasks"]
    for name, block in values["modalities"].items():
        for key in ("normalization", "channels", "temporal_average"):
            if name != "inputs":
                block.pop(key, None)
    assert zonal_config_from_dict(values).is_bundle


def test_disabled_blocks_need_no_raster():
    values = changed({"modalities.inputs": {"AERIAL_RGBI": True}})
    for name, block in values["modalities"].items():
        if name not in ("inputs", "AERIAL_RGBI"):
            block["input_img_path"] = None
    values["multitemp_model_ref_date"] = None
    assert zonal_config_from_dict(values).modalities.active == ("AERIAL_RGBI",)


def test_several_problems_with_places(write):
    text = yaml.safe_dump(changed({"margin": 200, "output_type": "x", "tasks.0.name": "y"}), sort_keys=False)
    path = write(text, "zonal.yaml")
    lines = text.splitlines()
    with pytest.raises(ConfigError) as error:
        load_zonal_config(path)
    places = [problem[problem.rindex("(") :] for problem in error.value.problems]
    expected = ["output_type: x", "- name: y", "margin: 200"]
    assert places == [f"(zonal.yaml, line {lines.index(line) + 1})" for line in expected]
