"""Zone cubes: the same map as from the files, resumable, never a fill value in place of a pixel."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import flairhub as fh
from flairhub.cli import main
from flairhub.cube.zone_cube import open_zone_cube
from flairhub.errors import ConfigError, CubeError, OutputExistsError, UsageError, ZoneError
from flairhub.inference import open_zone, predict_zone, run_zonal
from flairhub.ingest import ingest_zone
from flairhub.modalities import INPUTS
from flairhub.prepare import ImagePreparation
from flairhub.timeseries import CloudFilter, SeriesPreparation
from tests.helpers.bundle_makers import make_bundle, write_zonal_config
from tests.helpers.waiting import HANG_S
from tests.helpers.zone_makers import MadeZone, fake_model, make_zone, write_raster

RATIOS = {
    "AERIAL_RGBI": 1,
    "AERIAL-RLT_PAN": 2,
    "DEM_ELEV": 1,
    "SPOT_RGBI": 8,
    "SENTINEL2_TS": 8,
    "SENTINEL1-ASC_TS": 8,
    "SENTINEL1-DESC_TS": 8,
}
PREPARATIONS: Mapping[str, Any] = {
    "AERIAL_RGBI": ImagePreparation((1, 2, 3), None, "custom", (50.0, 51.0, 52.0), (20.0, 21.0, 22.0)),
    "AERIAL-RLT_PAN": ImagePreparation(),
    "DEM_ELEV": ImagePreparation(elevation="dsm_ndsm"),
    "SPOT_RGBI": ImagePreparation((1, 2, 3)),
    "SENTINEL2_TS": SeriesPreparation(cloud_filter=CloudFilter(55, 65, 0.4), average="monthly"),
    "SENTINEL1-ASC_TS": SeriesPreparation((1, 2)),
    "SENTINEL1-DESC_TS": SeriesPreparation((1, 2), average="semi-monthly"),
}
THRESHOLDS = {
    "modalities.SENTINEL2_TS.filter_clouds_max_cloud": 55,
    "modalities.SENTINEL2_TS.filter_clouds_max_snow": 65,
    "modalities.SENTINEL2_TS.filter_clouds_max_frac_cover": 0.4,
}
MAP = "map_AERIAL_LABEL-COSIA_argmax.tif"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeZone:
    """All seven inputs and the mask; heights with holes, aerial with a mask inside the file, SPOT with nodata."""
    folder = tmp_path_factory.mktemp("zone")
    made = make_zone(folder, 96, 80, RATIOS, n_dates=6, quality=True, profiles={"SPOT_RGBI": {"nodata": 7}})
    heights = made.arrays["DEM_ELEV"]
    heights[:, 60:75, 3:20] = np.nan
    write_raster(folder / "DEM_ELEV.tif", heights, 0.2)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(folder / "AERIAL_RGBI.tif", "r+") as dataset:
        mask = np.full((96, 80), 255, dtype=np.uint8)
        mask[:10, 50:] = 0
        dataset.write_mask(mask)
    return made


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "all", PREPARATIONS)


@pytest.fixture
def yaml_path(tmp_path: Path, made: MadeZone, bundle: Path) -> Path:
    return write_zonal_config(tmp_path / "zonal.yaml", made, bundle, THRESHOLDS)


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory, made: MadeZone, bundle: Path) -> Path:
    """Read only: copy to change."""
    folder = tmp_path_factory.mktemp("cube")
    path = write_zonal_config(folder / "zonal.yaml", made, bundle, THRESHOLDS)
    ingest_zone(open_zone(path, all_masks=True), cube=folder / "zone.zarr")
    return folder / "zone.zarr"


def cli(*arguments: object) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_map_from_the_zone_cube_is_the_map_from_the_files(
    yaml_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All modalities, the filtered series too, through the commands; the YAML stays as it is."""
    target = tmp_path / "zone.zarr"
    assert cli("ingest", "--zone", yaml_path, "--cube", target) == 0
    printed = capsys.readouterr().out.replace("\n", "")
    assert "SENTINEL2_MSK-SC" in printed
    assert "--set cube=" in printed
    first = run_zonal(yaml_path)
    assert 0 < first.nodata_share < 0.3
    # The cube alone is enough: the files may go.
    again = f"output_name=again,cube={target}".split(",")
    arguments = [part for change in again for part in ("--set", change)]
    assert cli("zonal", "--config", yaml_path, *arguments, "--set", "block_px=40") == 0
    found = read(tmp_path / "out" / MAP.replace("map", "again", 1))
    assert found.tobytes() == read(first.maps[0].path).tobytes()
    assert len(np.unique(found)) > 2
    assert cli("check", yaml_path, "--set", f"cube={target}") == 0


def test_probabilities_are_the_same_bits(made: MadeZone, yaml_path: Path, cube: Path) -> None:
    from flairhub.config import load_zonal_config
    from flairhub.inference import zone_model

    maps = []
    for changes in ([], [f"cube={cube}"]):
        config = load_zonal_config(yaml_path, changes)
        zone = fh.open_zone(config)
        assert tuple(zone.rasters) == INPUTS
        assert set(zone.quality) == {"SENTINEL2_TS"}
        np.testing.assert_array_equal(zone.to_xarray()["SPOT_RGBI"]["data"].values, made.arrays["SPOT_RGBI"])
        maps.append(predict_zone(zone, zone_model(config, zone), outputs=("probabilities",), block_px=50))
    assert maps[0]["probabilities"].values.tobytes() == maps[1]["probabilities"].values.tobytes()


def test_pixels_masks_and_grids_survive(made: MadeZone, yaml_path: Path, cube: Path) -> None:
    opened, zone = open_zone_cube(cube), open_zone(yaml_path)
    for name, layer in opened.layers.items():
        values, mask = opened.read(name, (0, layer.geobox.height), (0, layer.geobox.width))
        np.testing.assert_array_equal(values.reshape(made.arrays[name].shape), made.arrays[name])
        assert values.dtype == made.arrays[name].dtype
        assert (mask is None) == (name != "AERIAL_RGBI")
        source = {**zone.rasters, "SENTINEL2_MSK-SC": zone.quality["SENTINEL2_TS"]}[name]
        assert layer.geobox == source.geobox
        assert layer.nodata == source.nodata
    _, mask = opened.read("AERIAL_RGBI", (0, 20), (40, 80))
    assert mask is not None
    assert not mask[:10, 10:].any()
    assert mask.sum() == 20 * 40 - 10 * 30


def test_xarray_opens_each_group_without_a_warning(made: MadeZone, cube: Path) -> None:
    import rioxarray  # noqa: F401

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        series = xr.open_zarr(cube, group="SENTINEL2_TS")
        image = xr.open_zarr(cube, group="AERIAL_RGBI")
        height = xr.open_zarr(cube, group="DEM_ELEV")
    expected = made.arrays["SENTINEL2_TS"].reshape(6, 10, 12, 10)
    np.testing.assert_array_equal(series["data"].values, expected)
    assert series["data"].dtype == np.uint16
    assert series["data"].dims == ("time", "band", "y", "x")
    assert list(series["time"].values.astype("datetime64[D]")) == list(made.dates["SENTINEL2_TS"])
    assert list(series["band"].values[:2]) == ["B02", "B03"]
    assert image.rio.crs.to_epsg() == 2154
    assert tuple(image.rio.transform())[:6] == (0.2, 0.0, 650_000.0, 0.0, -0.2, 6_860_000.0)
    assert image["data"].rio.bounds() == pytest.approx((650_000.0, 6_859_980.8, 650_016.0, 6_860_000.0))
    assert float(series["x"][0]) == 650_000.0 + 0.8
    assert xr.open_zarr(cube, group="SPOT_RGBI")["data"].rio.nodata == 7
    np.testing.assert_array_equal(height["data"].values, made.arrays["DEM_ELEV"])


def strangers_pixel(cube: Path, name: str, y: int, x: int) -> np.ndarray:
    """Read one pixel as docs/cube-format.md says, with nothing of this project."""
    import numcodecs.blosc
    import numcodecs.zstd

    metadata = json.loads((cube / name / "data" / "zarr.json").read_text())
    shape, dtype = metadata["shape"], np.dtype(metadata["data_type"])
    sharding = metadata["codecs"][0]["configuration"]
    shard, chunk = metadata["chunk_grid"]["configuration"]["chunk_shape"][-1], sharding["chunk_shape"][-1]
    s, i, j = shard // chunk, y // chunk, x // chunk
    content = (cube / name / "data" / "c").joinpath(*["0"] * (len(shape) - 2), f"{i // s}", f"{j // s}").read_bytes()
    index = np.frombuffer(content[-16 * s * s - 4 : -4], "<u8").reshape(-1, 2)
    offset, length = (int(number) for number in index[(i % s) * s + j % s])
    packed = content[offset : offset + length - 4]
    codec = numcodecs.zstd if sharding["codecs"][1]["name"] == "zstd" else numcodecs.blosc
    pixels = np.frombuffer(codec.decompress(packed), dtype).reshape(*shape[:-2], chunk, chunk)
    return pixels[..., y % chunk, x % chunk]


def test_a_stranger_can_read_it(made: MadeZone, cube: Path) -> None:
    for name, values in made.arrays.items():
        y, x = values.shape[-2] - 1, values.shape[-1] - 2
        np.testing.assert_array_equal(strangers_pixel(cube, name, y, x).reshape(-1), values[:, y, x])


@settings(max_examples=15)
@given(data=st.data())
def test_any_region_of_any_size_reads_as_numpy_slices(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Sizes that divide nothing, several chunks and shards."""
    height, width = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70))
    folder = tmp_path_factory.mktemp("any")
    made = make_zone(folder, height, width, {"DEM_ELEV": 1})
    from flairhub.cube import zone_spec

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zone_spec, "_CHUNK_PX", (8, 16))
        patch.setattr(zone_spec, "_SHARD_BYTES", data.draw(st.sampled_from([1, 16 * 16 * 8 * 4])))
        ingest_zone(made.open(32, 4), cube=folder / "zone.zarr", workers=data.draw(st.integers(1, 3)))
    array = open_zone_cube(folder / "zone.zarr").arrays["DEM_ELEV/data"]
    whole = made.arrays["DEM_ELEV"]
    for _ in range(5):
        top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
        bottom, right = data.draw(st.integers(top + 1, height)), data.draw(st.integers(left + 1, width))
        np.testing.assert_array_equal(array.read((top, bottom), (left, right)), whole[:, top:bottom, left:right])
    np.testing.assert_array_equal(zarr.open_group(folder / "zone.zarr", mode="r")["DEM_ELEV/data"][...], whole)


def test_damaged_chunk_stops_the_run(
    yaml_path: Path, cube: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(cube, tmp_path / "damaged.zarr")
    shard = copy / "SENTINEL2_TS" / "data" / "c" / "0" / "0" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[40] ^= 0xFF
    shard.write_bytes(content)
    assert cli("zonal", "--config", yaml_path, "--set", f"cube={copy}") == 1
    message = capsys.readouterr().err
    assert f"CubeError: {copy}: SENTINEL2_TS/data: chunk 0.0.0.0 (shard c/0/0/0/0) is damaged" in message
    assert not (tmp_path / "out" / MAP).exists()
    assert cli("cube", "verify", copy) == 1
    assert "SENTINEL2_TS/data: chunk 0.0.0.0" in capsys.readouterr().out.replace("\n", "")
    shard.unlink()
    with pytest.raises(
        CubeError, match=r"SENTINEL2_TS/data: chunk 0.0.0.0 .* is absent: its shard file does not exist"
    ):
        open_zone_cube(copy).read("SENTINEL2_TS", (0, 1), (0, 1))


def test_cube_commands_know_zone_cubes(cube: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("cube", "verify", cube) == 0
    assert "are whole" in capsys.readouterr().out
    assert cli("cube", "info", cube) == 0
    printed = capsys.readouterr().out
    assert "zone cube of 0.016 x 0.0192 km, EPSG:2154" in printed
    assert "6 x 10 x 12 x 10" in printed
    with pytest.raises(CubeError, match=r"a zone cube .* not a cube of patches"):
        fh.open_cube(cube)


def killed(yaml_path: Path, target: Path, fault: str, *arguments: str) -> int:
    command = ["ingest", "--zone", str(yaml_path), "--cube", str(target), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FLAIRHUB_FAULT": fault}
    code = "import sys; from flairhub.cli import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *command], env=environment, capture_output=True, text=True, timeout=HANG_S
    )
    return done.returncode


@pytest.mark.parametrize("fault", ["shard:3", "tables"])
def test_killed_ingest_continues_to_the_same_bytes(yaml_path: Path, cube: Path, tmp_path: Path, fault: str) -> None:
    target = tmp_path / "zone.zarr"
    assert killed(yaml_path, target, fault) == -signal.SIGKILL
    with pytest.raises(CubeError, match="not complete"):
        open_zone_cube(target)
    assert cli("zonal", "--config", yaml_path, "--set", f"cube={target}") == 1
    report = ingest_zone(open_zone(yaml_path, all_masks=True), cube=target)
    assert report.n_reused >= {"shard:3": 2, "tables": 8}[fault]
    assert tree(target) == tree(cube)
    assert ingest_zone(open_zone(yaml_path, all_masks=True), cube=target).already_complete


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["store", "file-rename", "file-rename:5", "shard", "journal-half", "journal-line:4"])
def test_killed_anywhere_continues_to_the_same_bytes(yaml_path: Path, cube: Path, tmp_path: Path, fault: str) -> None:
    target = tmp_path / "zone.zarr"
    assert killed(yaml_path, target, fault) == -signal.SIGKILL
    assert killed(yaml_path, target, "journal-line:2") == -signal.SIGKILL
    assert killed(yaml_path, target, "") == 0
    assert tree(target) == tree(cube)
    assert killed(yaml_path, target, "complete", "--overwrite") == -signal.SIGKILL
    assert killed(yaml_path, target, "") == 0
    assert tree(target) == tree(cube)


def test_what_is_at_the_path_already(made: MadeZone, yaml_path: Path, cube: Path, tmp_path: Path) -> None:
    target = shutil.copytree(cube, tmp_path / "zone.zarr")
    zone = open_zone(yaml_path, all_masks=True)
    with pytest.raises(OutputExistsError, match=r"a zone cube exists, made from other rasters .* Pass --overwrite"):
        ingest_zone(zone, cube=target, codec="fast")
    assert tree(target) == tree(cube)
    ingest_zone(zone, cube=target, codec="fast", overwrite=True)
    assert json.loads((target / "zarr.json").read_text())["attributes"]["flairhub_zone"]["codec"] == "fast"
    other = tmp_path / "precious"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="is no zone cube; it is never removed"):
        ingest_zone(zone, cube=other, overwrite=True)
    with pytest.raises(UsageError, match="codec: got 'zip'"):
        ingest_zone(zone, cube=tmp_path / "none.zarr", codec="zip")
    assert not (tmp_path / "none.zarr").exists()


def test_lost_shard_is_made_again(yaml_path: Path, cube: Path, tmp_path: Path) -> None:
    target = shutil.copytree(cube, tmp_path / "zone.zarr")
    (target / "DEM_ELEV" / "data" / "c" / "0" / "0" / "0").unlink()
    report = ingest_zone(open_zone(yaml_path, all_masks=True), cube=target)
    assert report.n_jobs - report.n_reused == 1
    assert tree(target) == tree(cube)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (["cube=/nowhere.zarr"], CubeError, r"/nowhere.zarr: does not exist. Make one with `flairhub ingest --zone"),
        (["roi=AA-S1-1"], ConfigError, r"roi: a region of interest of which cube\? Give cube: PATH"),
        (
            ["cube=CUBE", "roi=AA-S1-1"],
            CubeError,
            r"a zone cube \(rasters of one area\), not a cube of patches. .* without `roi`",
        ),
        (["cube=CUBE", "img_pixels_detection=36"], ConfigError, r"36 px hold no whole number"),
    ],
)
def test_errors_say_what_to_do(
    yaml_path: Path, cube: Path, changes: list[str], error: type[Exception], message: str
) -> None:
    from flairhub.config import load_zonal_config

    with pytest.raises(error, match=message):
        open_zone(load_zonal_config(yaml_path, [change.replace("CUBE", str(cube)) for change in changes]))


def test_missing_input_and_mask_are_named(tmp_path: Path, bundle: Path, yaml_path: Path, made: MadeZone) -> None:
    from dataclasses import replace

    from flairhub.config import load_zonal_config

    few = replace(made, requests=tuple(replace(one, quality_path=None) for one in made.requests[4:5]))
    target = tmp_path / "few.zarr"
    ingest_zone(few.open(32, 4), cube=target)
    with pytest.raises(ZoneError, match=r"holds no AERIAL_RGBI, only SENTINEL2_TS. Set modalities.inputs.AERIAL_RGBI"):
        open_zone(load_zonal_config(yaml_path, [f"cube={target}"]))


def test_options_of_patches_are_refused(
    yaml_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], cube: Path
) -> None:
    assert cli("ingest", "--zone", yaml_path, "--cube", tmp_path / "a.zarr", "--root", tmp_path) == 2
    assert "--root is for patches, --zone takes whole rasters" in capsys.readouterr().err
    assert cli("ingest", "--zone", yaml_path) == 2
    assert "pass --cube PATH" in capsys.readouterr().err
    assert cli("ingest", "--zone", yaml_path, "--cube", tmp_path / "a.zarr", "--set", f"cube={cube}") == 2
    assert "cube is set already" in capsys.readouterr().err


def test_chunks_are_decoded_about_once(
    tmp_path: Path, made: MadeZone, cube: Path, monkeypatch: pytest.MonkeyPatch, bundle: Path
) -> None:
    """Blocks share the chunks at their borders."""
    from flairhub.cube.codecs import ChunkCodec

    folder = tmp_path / "many"
    many = make_zone(folder, 200, 200, {"AERIAL_RGBI": 1})
    from flairhub.cube import zone_spec

    with monkeypatch.context() as patch:
        patch.setattr(zone_spec, "_CHUNK_PX", (8, 16))
        ingest_zone(many.open(32, 4), cube=folder / "zone.zarr")
    path = write_zonal_config(folder / "zonal.yaml", many, bundle, {"cube": str(folder / "zone.zarr")})
    decoded = []
    original: Callable[..., None] = ChunkCodec.decode_into
    monkeypatch.setattr(
        ChunkCodec, "decode_into", lambda self, stored, out: decoded.append(1) or original(self, stored, out)
    )
    values = predict_zone(open_zone(path), fake_model({"AERIAL_RGBI": ImagePreparation()}), block_px=30)["class"].values
    assert values.shape == (200, 200)
    assert 13 * 13 <= len(decoded) <= 13 * 13 * 1.2
