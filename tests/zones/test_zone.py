"""Rasters are checked from their headers: what does not fit is an error that names both sides."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flairhub.errors import DataError, UsageError, ZoneError
from flairhub.inference import predict_zone
from flairhub.prepare import ImagePreparation
from flairhub.timeseries import CloudFilter, SeriesPreparation
from flairhub.zones.dates import read_dates
from tests.helpers.zone_makers import X_MIN, Y_MAX, fake_model, made_values, make_zone, write_raster

BOTH = {"AERIAL_RGBI": 1, "SPOT_RGBI": 8}


def broken(folder: Path, name: str, values: Any, res_m: float, **profile: Any) -> Any:
    """A zone of aerial and SPOT rasters with one raster replaced; returns the call that opens it."""
    made = make_zone(folder, 64, 64, BOTH)
    write_raster(folder / f"{name}.tif", values, res_m, **profile)
    return lambda: made.open(32, 4)


def test_crs_differs(tmp_path: Path) -> None:
    call = broken(tmp_path, "SPOT_RGBI", made_values("SPOT_RGBI", 0, 8, 8), 1.6, crs="EPSG:32631")
    with pytest.raises(ZoneError, match=r"SPOT_RGBI: .*SPOT_RGBI.tif is in EPSG:32631, but AERIAL_RGBI .* EPSG:2154"):
        call()


def test_crs_missing(tmp_path: Path) -> None:
    call = broken(tmp_path, "SPOT_RGBI", made_values("SPOT_RGBI", 0, 8, 8), 1.6, crs=None)
    with pytest.raises(DataError, match=r"modalities.SPOT_RGBI.input_img_path: .*SPOT_RGBI.tif has no CRS"):
        call()


def test_footprint_differs(tmp_path: Path) -> None:
    call = broken(tmp_path, "SPOT_RGBI", made_values("SPOT_RGBI", 0, 9, 8), 1.6)
    with pytest.raises(ZoneError, match=r"covers \(650000, 6859985.6, 650012.8, 6860000\).*covers \(650000, 6859987.2"):
        call()


@pytest.mark.parametrize(("shift_px", "fits"), [(0.009, True), (0.02, False), (0.5, False)])
def test_alignment_tolerance_is_a_hundredth_of_a_pixel(tmp_path: Path, shift_px: float, fits: bool) -> None:
    origin = (X_MIN + shift_px * 0.2, Y_MAX)
    call = broken(tmp_path, "SPOT_RGBI", made_values("SPOT_RGBI", 0, 8, 8), 1.6, origin=origin)
    if fits:
        assert call().ratio("SPOT_RGBI") == 8
    else:
        with pytest.raises(ZoneError, match=r"tolerance 0.01 px"):
            call()


def test_ratio_is_not_whole(tmp_path: Path) -> None:
    call = broken(tmp_path, "SPOT_RGBI", made_values("SPOT_RGBI", 0, 9, 9), 12.8 / 9)
    with pytest.raises(ZoneError, match=r"pixels of 1.42222 x 1.42222 m, AERIAL_RGBI .* of 0.2 x 0.2 m: 7.11111 is no"):
        call()


def test_missing_damaged_and_foreign_files(tmp_path: Path) -> None:
    made = make_zone(tmp_path, 64, 64, BOTH)
    path = tmp_path / "SPOT_RGBI.tif"
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(ZoneError, match=r"modalities.SPOT_RGBI.input_img_path: no file .*SPOT_RGBI.tif"):
        made.open(32, 4)
    path.write_bytes(content[:100])
    with pytest.raises(ZoneError, match=r"SPOT_RGBI.tif does not open as a GeoTIFF"):
        made.open(32, 4)
    path.write_text('<VRTDataset rasterXSize="8" rasterYSize="8"></VRTDataset>')
    with pytest.raises(ZoneError, match=r"SPOT_RGBI.tif does not open as a GeoTIFF"):
        made.open(32, 4)


def test_truncated_pixels_are_an_error_not_zeros(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (4, 64, 64), dtype=np.uint8)
    made = make_zone(tmp_path, 64, 64, {"AERIAL_RGBI": 1})
    path = write_raster(tmp_path / "AERIAL_RGBI.tif", values, 0.2)
    path.write_bytes(path.read_bytes()[:-3000])
    lazy = predict_zone(made.open(32, 4), fake_model({"AERIAL_RGBI": ImagePreparation()}))
    with pytest.raises(DataError, match=r"AERIAL_RGBI.tif: cannot read rows .* damaged or gone"):
        lazy.compute()


def test_complex_pixels(tmp_path: Path) -> None:
    call = broken(tmp_path, "SPOT_RGBI", np.ones((4, 8, 8), dtype=np.complex64), 1.6)
    with pytest.raises(ZoneError, match=r"pixel type complex64, expected one real number type"):
        call()


def test_bands_times_dates(tmp_path: Path) -> None:
    made = make_zone(tmp_path, 16, 16, {"SENTINEL2_TS": 1}, n_dates=4)
    lines = (tmp_path / "SENTINEL2_TS.txt").read_text().splitlines()
    (tmp_path / "SENTINEL2_TS.txt").write_text("\n".join(lines[:3]))
    with pytest.raises(ZoneError, match=r"has 40 bands, but .*SENTINEL2_TS.txt has 3 dates x 10 bands .* = 30"):
        made.open(16, 0)


def test_quality_mask_arithmetic_and_grid(tmp_path: Path) -> None:
    made = make_zone(tmp_path, 16, 16, {"SENTINEL2_TS": 1}, n_dates=4, quality=True)
    path = tmp_path / "SENTINEL2_MSK-SC.tif"
    write_raster(path, np.zeros((6, 16, 16), dtype=np.uint8), 0.2)
    with pytest.raises(ZoneError, match=r"MSK-SC.tif has 6 bands, .* 4 dates x 2 bands .* = 8"):
        made.open(16, 0)
    write_raster(path, np.zeros((8, 8, 8), dtype=np.uint8), 0.4)
    with pytest.raises(ZoneError, match=r"MSK-SC.tif has 8 x 8 px, but SENTINEL2_TS .* has 16 x 16 px"):
        made.open(16, 0)


@pytest.mark.parametrize(
    "text",
    [
        "20210105\n20210310\n20211231\n",
        "\ufeff20210105\r\n\r\n20210310\r\n20211231",
        "# dates\n2021-01-05\n2021-03-10\n2021-12-31\n",
        "1 20210105\n2 20210310\n3 20211231\n",
        "1,20210105\n2;20210310\n3: 20211231\n",
        "20210105, 20210310, 20211231",
        "['20210105', '20210310', '20211231']",
        '{"2": "20210310", "10": "20211231", "1": "20210105"}'.replace('"10"', '"3"'),
    ],
)
def test_date_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "dates.txt"
    path.write_text(text, encoding="utf-8")
    found = read_dates(path, "key")
    assert [str(day) for day in found] == ["2021-01-05", "2021-03-10", "2021-12-31"]


@pytest.mark.parametrize(
    "text",
    [
        "20210105\r\n20210310\r\n20211231\r\n",
        "\ufeff20210105\n\n20210310,\n20211231,\n\n",
        '"20210105"\n"20210310"\n"20211231"\n',
        "'2021-01-05', '2021-03-10', '2021-12-31'",
        '["2021-01-05T10:50:31Z", "2021-03-10T10:50:31.024000Z", "2021-12-31T10:50:31+00:00"]',
        "date\n2021-01-05\n2021-03-10\n2021-12-31\n",
        "acquisition date\n2021-01-05 10:50:31\n2021-03-10 10:50:31.5\n2021-12-31 10:50:31\n",
        ",0\n0,2021-01-05\n1,2021-03-10\n2,2021-12-31\n",
        ",date\n0,2021-01-05 10:50:31+00:00\n1,2021-03-10 10:50:31+00:00\n2,2021-12-31 10:50:31+00:00\n",
        "fid,date\n1,2021/01/05\n2,2021/03/10\n3,2021/12/31\n",
        '"fid","date"\n1,"2021/01/05 10:50:31+00"\n2,"2021/03/10 10:50:31+00"\n3,"2021/12/31 10:50:31+00"\n',
        '# made\n{"1": "2021-01-05", "3": 20211231, "2": "2021/03/10"}'.replace("# made\n", ""),
        "1: 20210105\n2: 20210310\n3: 20211231\n",
        "20210105T105031 20210310T105031 20211231T105031",
    ],
)
def test_date_files_of_other_programs(tmp_path: Path, text: str) -> None:
    path = tmp_path / "dates.txt"
    path.write_bytes(text.encode())
    assert [str(day) for day in read_dates(path, "key")] == ["2021-01-05", "2021-03-10", "2021-12-31"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_date_files_in_another_encoding_are_named(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "dates.txt"
    path.write_bytes("# modifié\n20210105\n".encode(encoding))
    with pytest.raises(ZoneError, match=r"key: cannot read the dates in .*dates.txt: .*save it as UTF-8"):
        read_dates(path, "key")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("NaT\n20210105\n", r"dates.txt, line 1: date 'NaT' is not"),
        ("Jan 5 2018\n20210105\n", r"dates.txt, line 1: date 'Jan' is not"),
        ("date\ndate\n20210105\n", r"dates.txt, line 2: date 'date' is not"),
        ("05/01/2021\n20210105\n", r"dates.txt, line 1: date '05/01/2021' is not"),
        ("0,20210105\n2,20210106\n", r"dates.txt, line 2: date '2' is not"),
        ("date,cloud\n20210105,12\n", r"dates.txt, line 2: date '12' is not"),
        ('{"1": "20210105", "1": "20210106"}', r"dates.txt: position 1 is given more than once"),
        ("[" * 50_000, r"dates.txt, line 1: date"),
        ('{"1":' * 50_000, r"not a JSON object"),
        ("20210105\n2021310\n", r"dates.txt, line 2: date '2021310' is not YYYYMMDD"),
        ("20210105\n\n20210230\n", r"dates.txt, line 3: date '20210230' is not YYYYMMDD"),
        ("20210105\n7 20210310\n", r"dates.txt, line 2: date '7' is not"),
        ("20210105\n---\n", r"dates.txt, line 2: date '---' is not"),
        ("\n# nothing\n", r"key: .*dates.txt holds no date"),
    ],
)
def test_bad_date_files_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "dates.txt"
    path.write_text(text)
    with pytest.raises((DataError, ZoneError), match=message) as error:
        read_dates(path, "key")
    assert error.value.exit_code == 1


def test_missing_dates(tmp_path: Path) -> None:
    made = make_zone(tmp_path, 16, 16, {"SENTINEL1-ASC_TS": 1}, n_dates=4)
    (tmp_path / "SENTINEL1-ASC_TS.txt").unlink()
    with pytest.raises(ZoneError, match=r"modalities.SENTINEL1-ASC_TS.dates_txt: cannot read"):
        made.open(16, 0)


def test_windows_off_the_lattice(tmp_path: Path) -> None:
    made = make_zone(tmp_path, 64, 64, BOTH)
    with pytest.raises(UsageError, match=re.escape("img_pixels_detection: 36 px hold no whole")) as error:
        predict_zone(made.open(36, 4), fake_model({"AERIAL_RGBI": ImagePreparation()}))
    assert error.value.exit_code == 2


def test_zone_and_model_must_fit(tmp_path: Path) -> None:
    made = make_zone(tmp_path, 16, 16, {"AERIAL_RGBI": 1, "SENTINEL2_TS": 4})
    zone = made.open(16, 4)
    with pytest.raises(ZoneError, match=r"the model takes SPOT_RGBI, but the zone has only AERIAL_RGBI, SENTINEL2_TS"):
        predict_zone(zone, fake_model({"SPOT_RGBI": ImagePreparation()}))
    with pytest.raises(ZoneError, match=r"AERIAL_RGBI.tif: channels \[5\] do not exist: the data has bands 1..4"):
        predict_zone(zone, fake_model({"AERIAL_RGBI": ImagePreparation((1, 5))}))
    with pytest.raises(ZoneError, match=r"gives 4 channels, but the model normalises 3"):
        predict_zone(zone, fake_model({"AERIAL_RGBI": ImagePreparation(None, None, "custom", (1, 1, 1), (1, 1, 1))}))
    with pytest.raises(ZoneError, match=r"filters clouds, but the zone has no quality mask"):
        predict_zone(zone, fake_model({"SENTINEL2_TS": SeriesPreparation(cloud_filter=CloudFilter())}))
    model = fake_model({"AERIAL_RGBI": ImagePreparation()})
    with pytest.raises(UsageError, match=r"outputs: got \['maps'\], expected some of class"):
        predict_zone(zone, model, outputs=("maps",))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="block_px: got 0"):
        predict_zone(zone, model, block_px=0)
    with pytest.raises(UsageError, match="batch_size: got 0"):
        predict_zone(zone, model, batch_size=0)
