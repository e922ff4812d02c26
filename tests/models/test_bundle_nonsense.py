"""Bundles with the right checksums and the wrong content: every field is looked at when one is loaded."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flairhub.cli import main
from flairhub.errors import WeightsError
from flairhub.models import load_model
from flairhub.models.bundle import read_manifest
from flairhub.prepare import ImagePreparation
from flairhub.timeseries import CloudFilter, SeriesPreparation
from tests.helpers.bundle_makers import make_bundle

IMAGE = ImagePreparation((4, 1, 2), None, "custom", (100.0, 101.0, 102.0), (40.0, 41.0, 42.0))
SERIES = SeriesPreparation(None, CloudFilter(1.0, 2.0, 0.05), "monthly", "masked", "05-15")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("whole") / "a.bundle", {"AERIAL_RGBI": IMAGE, "SENTINEL2_TS": SERIES})


def put(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return what sets a value in a manifest; `...` removes it."""

    def change(manifest: dict[str, Any]) -> None:
        holder: Any = manifest
        for part in path[:-1]:
            holder = holder[part]
        if value is ...:
            del holder[path[-1]]
        else:
            holder[path[-1]] = value

    return change


def drop_class(manifest: dict[str, Any]) -> None:
    manifest["tasks"][0]["classes"].pop()


def drop_class_everywhere(manifest: dict[str, Any]) -> None:
    drop_class(manifest)
    manifest["network"]["tasks"]["AERIAL_LABEL-COSIA"] = 18


AERIAL, S2 = ("inputs", "AERIAL_RGBI"), ("inputs", "SENTINEL2_TS")
COLOUR = ("tasks", 0, "classes", 3, "colour")
CASES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "format 0": (put("format", value=0), "bundle format 0, expected 1"),
    "format -1": (put("format", value=-1), "bundle format -1, expected 1"),
    "format true": (put("format", value=True), "bundle format True, expected 1"),
    "format 1.0": (put("format", value=1.0), "bundle format 1.0, expected 1"),
    "format text": (put("format", value="1"), "bundle format '1', expected 1"),
    "format 2": (put("format", value=2), "bundle format 2, this version reads up to 1"),
    "no network": (put("network", value=...), "'network' is missing"),
    "network a list": (put("network", value=[1]), "not a usable model description"),
    "unknown key": (put("network", "depth", value=3), "network: unknown depth"),
    "one class less": (drop_class, r"tasks: got \{'AERIAL_LABEL-COSIA': 18\}, the network predicts"),
    "one class less, twice": (drop_class_everywhere, "has the shape .*19.*, the network of model.json .*18"),
    "no classes": (put("tasks", 0, "classes", value=[]), "got 0 classes, expected 1 to 255"),
    "unknown label": (put("tasks", 0, "label", value="LABEL"), "tasks.label: got 'LABEL', expected one of AERIAL"),
    "unknown label, twice": (put("network", "tasks", value={"X": 19}), "tasks: got .*, the network predicts"),
    "no task": (put("tasks", value=[]), "tasks: got \\[\\], expected one entry per task"),
    "level 2": (put("tasks", 0, "level", value=2), "AERIAL_LABEL-COSIA.level: got 2"),
    "level 0": (put("tasks", 0, "level", value=0), "AERIAL_LABEL-COSIA.level: got 0"),
    "level text": (put("tasks", 0, "level", value="1"), "AERIAL_LABEL-COSIA.level: got '1'"),
    "index": (put("tasks", 0, "classes", 0, "index", value=7), "class indices must be 0..18 in order"),
    "index 0.0": (put("tasks", 0, "classes", 0, "index", value=0.0), "index: got 0.0"),
    "colour 999": (put(*COLOUR, value=[999, 0, 0]), r"3.colour: got \[999, 0, 0\], expected three whole numbers"),
    "colour -1": (put(*COLOUR, value=[0, -1, 0]), "3.colour: got"),
    "colour 1.5": (put(*COLOUR, value=[0, 1.5, 0]), "3.colour: got"),
    "colour of two": (put(*COLOUR, value=[0, 0]), "3.colour: got"),
    "colour text": (put(*COLOUR, value="red"), "3.colour: got 'red'"),
    "equal names": (put("tasks", 0, "classes", 1, "name", value="building"), "both called 'building'"),
    "empty name": (put("tasks", 0, "classes", 1, "name", value=" "), "class 1: got ' ', expected a name"),
    "number as name": (put("tasks", 0, "classes", 1, "name", value=5), "class 1: got 5, expected a name"),
    "control character": (put("tasks", 0, "classes", 1, "name_fr", value="a\x1b"), "control character"),
    "no French": (put("tasks", 0, "classes", 1, "name_fr", value=...), "'name_fr' is missing"),
    "more of a class": (put("tasks", 0, "classes", 1, "weight", value=1), "unexpected keyword argument 'weight'"),
    "day 99": (put("ref_date", value="99-99"), "ref_date|reference date|99-99"),
    "day as number": (put("ref_date", value=515), "not a usable model description"),
    "no day": (put("ref_date", value=...), "'ref_date' is missing"),
    "two days": (
        put("ref_date", value="01-01"),
        "ref_date: got '05-15', expected that of the bundle, 01-01",
    ),
    "channels 99": (put(*AERIAL, "preparation", "channels", value=[99, 1, 2]), r"channels: got \[99, 1, 2\]"),
    "channels 0": (put(*AERIAL, "preparation", "channels", value=[0, 1, 2]), r"channels: got \[0, 1, 2\]"),
    "channels twice": (put(*AERIAL, "preparation", "channels", value=[1, 1, 2]), r"channels: got \[1, 1, 2\]"),
    "channels as text": (put(*AERIAL, "preparation", "channels", value="412"), "channels: got '412'"),
    "two channels": (put(*AERIAL, "preparation", "channels", value=[1, 2]), "means: got .*, expected 2 numbers"),
    "channels of dates": (put(*S2, "preparation", "channels", value=[11]), r"channels: got \[11\]"),
    "means": (put(*AERIAL, "preparation", "means", value=[1.0]), "1 means and 3 stds"),
    "a mean as text": (put(*AERIAL, "preparation", "means", value=["1", 2.0, 3.0]), "means: got"),
    "NaN": (put(*AERIAL, "preparation", "means", value=[float("nan"), 2.0, 3.0]), "means: got"),
    "std 0": (put(*AERIAL, "preparation", "stds", value=[0.0, 2.0, 3.0]), "stds must be positive"),
    "std true": (put(*AERIAL, "preparation", "stds", value=[True, 2.0, 3.0]), "stds: got"),
    "normalisation": (put(*AERIAL, "preparation", "normalisation", value="zscore"), "normalisation: got 'zscore'"),
    "elevation": (put(*AERIAL, "preparation", "elevation", value="ndsm"), "elevation: got 'ndsm', expected null"),
    "unknown preparation": (put(*AERIAL, "preparation", "gamma", value=2), "unexpected keyword argument 'gamma'"),
    "no preparation": (put(*AERIAL, "preparation", value=...), "'preparation' is missing"),
    "average": (put(*S2, "preparation", "average", value="daily"), "average: got 'daily'"),
    "fill": (put(*S2, "preparation", "fill", value="zero"), "fill: got 'zero'"),
    "clouds 101": (put(*S2, "preparation", "cloud_filter", "max_cloud", value=101), "max_cloud: got 101"),
    "share 2": (put(*S2, "preparation", "cloud_filter", "max_frac", value=2), "max_frac: got 2"),
    "no snow": (put(*S2, "preparation", "cloud_filter", "max_snow", value=...), "'max_snow' is missing"),
    "bands": (put(*AERIAL, "bands", value=["R", "G", "B"]), r"channels: got \[4, 1, 2\]"),
    "bands twice": (put(*AERIAL, "bands", value=["R", "R", "B", "N"]), "bands: got"),
    "bands as text": (put(*AERIAL, "bands", value="RGBN"), "bands: got 'RGBN'"),
    "no bands": (put(*AERIAL, "bands", value=[]), "bands: got"),
    "unknown input": (put("network", "inputs", "RADAR", value=2), "inputs: unknown 'RADAR'"),
    "an input less": (put(*S2, value=...), "inputs: got"),
    "channels of the network": (put("network", "inputs", "AERIAL_RGBI", value=4), "the preparation gives 3 channels"),
    "channels as a text": (put("network", "inputs", "AERIAL_RGBI", value="3"), "network.inputs.AERIAL_RGBI: got '3'"),
    "a huge size": (put("network", "sizes", "AERIAL_RGBI", value=10**9), "network.sizes.AERIAL_RGBI: got 1000000000"),
    "no size": (put("network", "sizes", "AERIAL_RGBI", value=0), "network.sizes.AERIAL_RGBI: got 0"),
    "dropout": (
        put("network", "modality_dropout", value={"AERIAL_RGBI": 1.5}),
        "dropout.AERIAL_RGBI: got 1.5",
    ),
    "encoder": (put("network", "arch", value="resnet999-unet"), "no network can be built of it"),
    "no encoder": (put("network", "arch", value=""), "no network can be built of it"),
    "arch a number": (put("network", "arch", value=34), "network.arch: got 34"),
    "another encoder": (put("network", "arch", value="resnet18-unet"), "missing tensors"),
    "head": (put("network", "aux", value=["AERIAL_RGBI"]), "missing tensors .*aux_decoders"),
    "unknown head": (put("network", "aux", value=["DEM_ELEV"]), "aux: unknown 'DEM_ELEV'"),
    "head as text": (put("network", "aux", value="AERIAL_RGBI"), "network.aux: got"),
    "heads of attention": (put("network", "series", "n_head", value=0), "series.*\\nn_head"),
    "widths": (put("network", "series", "encoder_widths", value=[8, 8, 10**6]), "not a usable|shape|no network"),
    "other classes": (put("network", "other_classes", value=-1), "network.other_classes: got -1"),
    "new channels": (put("network", "new_channels_init_mode", value="zeros"), "new_channels_init_mode: got 'zeros'"),
    "weights elsewhere": (put("weights", "file", value="../weights.safetensors"), "must lie in the bundle"),
    "weights absolute": (put("weights", "file", value="/etc/passwd"), "must lie in the bundle"),
    "weights a list": (put("weights", value=["weights.safetensors"]), "must lie in the bundle"),
    "another sum": (put("weights", "sha256", value="0" * 64), "damaged: sha256"),
    "no sum": (put("weights", "sha256", value=...), "damaged: sha256"),
    "training": (put("training", value=3), "training: got 3, expected a mapping"),
}


@pytest.fixture(scope="module")
def edited(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(whole, tmp_path_factory.mktemp("edited") / "a.bundle"))


def write(manifest: dict[str, Any], bundle: Path) -> None:
    """Write a manifest with the checksum that belongs to it."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    text = json.dumps(content, sort_keys=True, ensure_ascii=True)
    content["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (bundle / "model.json").write_text(json.dumps(content))


def test_the_whole_one_loads(whole: Path, edited: Path) -> None:
    write(read_manifest(whole), edited)
    assert load_model(edited).preparations == {"AERIAL_RGBI": IMAGE, "SENTINEL2_TS": SERIES}


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_field_is_refused(whole: Path, edited: Path, case: str) -> None:
    change, text = CASES[case]
    manifest = read_manifest(whole)
    change(manifest)
    write(manifest, edited)
    with pytest.raises(WeightsError, match=text) as refused:
        load_model(edited)
    assert str(edited) in str(refused.value)


def test_the_command_that_looks_at_a_bundle_names_the_field(
    whole: Path, edited: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = read_manifest(whole)
    del manifest["network"]
    write(manifest, edited)
    with pytest.raises(SystemExit) as stopped:
        main(["model", "info", str(edited)])
    assert stopped.value.code == 1
    assert capsys.readouterr().err.strip().endswith("model.json: not a usable model description: 'network' is missing")


def test_a_manifest_that_is_no_mapping(edited: Path) -> None:
    for text in ("[]", "3", "null", '"text"', "[" * 100_000, "\ufeff{}", "{"):
        (edited / "model.json").write_text(text)
        with pytest.raises(WeightsError, match=r"model\.json: damaged"):
            load_model(edited)
    (edited / "model.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(WeightsError, match=r"model\.json: damaged"):
        load_model(edited)
