"""The HTML report: its numbers, its pictures, that it needs nothing else, and how a browser shows it."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flairhub.class_raster import write_class_raster
from flairhub.cli import main
from flairhub.config import load_train_config
from flairhub.cube import open_cube
from flairhub.errors import DataError
from flairhub.report import write_html
from flairhub.tasks import default_task
from flairhub.training import evaluate
from flairhub.training.predict import label_grid, patch_file
from tests.helpers.config_makers import write_train_config
from tests.helpers.makers import PatchFiles
from tests.helpers.waiting import HANG_S

LAND = "AERIAL_LABEL-COSIA"
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.fixture(scope="module")
def run(patch_files: PatchFiles, make_cube: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder: predictions of different quality, their scores, a history."""
    folder = tmp_path_factory.mktemp("run")
    place = make_cube(patch_files)
    cube = open_cube(place)
    (folder / "all.csv").write_text("patch_id\n" + "\n".join(patch_files.patch_ids) + "\n")
    on = ("AERIAL_RGBI", "SENTINEL2_TS")
    write_train_config(
        folder,
        patch_files,
        paths={"test_csv": str(folder / "all.csv"), "cube": str(place), "out_model_name": "aerial & series"},
        modalities={
            "inputs": {
                name: name in on for name in patch_files.modalities if not name.endswith(("LPIS", "COSIA", "SC"))
            }
        },
        labels=[LAND],
    )
    rng = np.random.default_rng(0)
    for index in range(cube.n_patches):
        truth = cube.read(LAND, [index])[0, 0]
        wrong = rng.random(truth.shape) < (index + 1) / 12
        classes = np.where(wrong | (truth == 255), (truth.astype(int) + 1) % 15, truth).astype(np.uint8)
        path = folder / "run" / "predictions" / LAND / patch_file(cube, index, LAND)
        write_class_raster(path, classes, default_task(LAND), label_grid(cube, index, LAND))
    evaluate(load_train_config(folder), folder / "run" / "predictions", output=folder / "run")
    history = [
        {
            "epoch": n,
            "step": 10 * n,
            "lr": 1e-3,
            "train_loss": 2.0 / (n + 1),
            "val_loss": 2.2 / (n + 1),
            "val_miou": n / 9,
        }
        for n in range(6)
    ]
    (folder / "run" / "history.json").write_text(json.dumps(history))
    return folder / "run"


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return write_html(run).read_text(encoding="utf-8")


class Links(HTMLParser):
    """Collects what a page would fetch or run, and whether its tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.scripts = 0
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.scripts += tag in ("script", "link", "iframe", "object")
        self.sources += [str(value) for name, value in attributes if name in ("src", "href", "srcset")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_it_is_one_file_without_network_or_scripts(page: str) -> None:
    links = Links()
    links.feed(page)
    assert links.open == []
    assert links.scripts == 0
    # Confusion matrix, best patches, worst patches, learning curves.
    assert len(links.sources) == 4
    for source in links.sources:
        kind, _, content = source.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(content)[:8] == b"\x89PNG\r\n\x1a\n"
    assert "url(" not in page
    assert "@import" not in page


def test_its_numbers_are_those_of_the_metrics(run: Path, page: str) -> None:
    entry = json.loads((run / "metrics.json").read_text())["tasks"][LAND]
    strict, spans = entry["strict"], entry["intervals"]
    assert f"<b>{100 * strict['miou']:.1f} %</b>" in page
    assert f"{100 * spans['miou'][0]:.1f} to {100 * spans['miou'][1]:.1f}" in page
    table = page[page.index('<table class="classes">') : page.index("<h3>Confusion matrix")]
    for name, row in strict["per_class"].items():
        text = next(part for part in table.split("<tr>") if f"</span>{name.replace('_', ' ')}</td>" in part)
        cells = re.findall(r"<td>([^<]*)</td>", text)
        if row["iou"] is None:
            assert cells[0] == "–"
            assert 'class="iou"' not in text
            continue
        assert cells[0] == f"{100 * row['iou']:.1f}"
        assert float(re.search(r'class="iou" x="0" y="3" width="([\d.]+)"', text)[1]) == pytest.approx(
            200 * row["iou"], abs=0.01
        )
        low, high = spans["per_class_iou"][name]
        assert cells[1] == f"{100 * low:.1f} to {100 * high:.1f}"
        x, width = re.search(r'class="interval" x="([\d.]+)" y="8" width="([\d.]+)"', text).groups()
        assert float(x) == pytest.approx(200 * low, abs=0.01)
        assert float(width) == pytest.approx(max(200 * (high - low), 0.8), abs=0.02)
    for domain, scores in entry["domains"].items():
        assert f"<td>{domain}</td><td>{scores['n_patches']}</td><td>{100 * scores['strict']['miou']:.1f}</td>" in page


def test_it_names_the_published_row_configuration_and_versions(page: str) -> None:
    assert "published LC-D, same inputs</td><td>64.7</td><td>77.6</td>" in page
    assert "out_model_name: aerial &amp; series" in page
    assert "<h1>aerial &amp; series</h1>" in page
    assert "<td>torch</td>" in page
    assert "best val_miou 55.6 % after epoch 6" in page


def test_best_and_worst_patches_are_the_right_ones(patch_files: PatchFiles, page: str) -> None:
    shown = dict(re.findall(r'alt="(Best|Worst) patches: ([^"]*)"', page))
    # Each patch has more wrong pixels than the one before.
    assert shown["Best"].split(", ") == patch_files.patch_ids[:3]
    assert shown["Worst"].split(", ") == patch_files.patch_ids[:-4:-1]


def test_without_cube_or_predictions_it_says_so(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = write_html(run, cube=tmp_path / "nowhere.zarr", output=tmp_path / "a.html").read_text()
    assert "No pictures of patches" in text
    assert "nowhere.zarr" in text
    bare = tmp_path / "bare"
    shutil.copytree(run, bare, ignore=shutil.ignore_patterns("predictions", "history.json"))
    text = write_html(bare).read_text()
    assert "the run kept no predictions" in text
    assert "Learning curves" not in text


def test_folders_without_scores_are_errors(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["report", str(tmp_path)])
    assert stopped.value.code == 1
    assert "holds no config.yaml and no metrics.json" in capsys.readouterr().err
    broken = tmp_path / "broken"
    shutil.copytree(run, broken, ignore=shutil.ignore_patterns("predictions"))
    (broken / "metrics.json").write_text("{")
    with pytest.raises(DataError, match="is no JSON"):
        write_html(broken)
    main(["report", str(run), "--output", str(tmp_path / "sub" / "b.html")])
    assert "b.html" in capsys.readouterr().out
    assert (tmp_path / "sub" / "b.html").stat().st_size > 50_000


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_shows_it(run: Path, page: str, tmp_path: Path) -> None:
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"]
    flags += [
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--enable-logging=stderr",
    ]
    picture = tmp_path / "report.png"
    command = [str(CHROMIUM), *flags, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1100,5200"]
    command += [f"--screenshot={picture}", (run / "report.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape[1] == 1100
    # Bars of the classes, the blue of the confusion matrix, and the colours of classes in the patches.
    assert (np.abs(pixels - [0x4B, 0x7F, 0xB5]).sum(axis=2) < 12).sum() > 2000
    assert (np.abs(pixels - [8, 48, 107]).sum(axis=2) < 60).sum() > 500
    colours = {row.name: np.array(row.colour) for row in default_task(LAND).classes[:15]}
    seen = [name for name, colour in colours.items() if (np.abs(pixels - colour).sum(axis=2) < 12).sum() > 200]
    assert len(seen) >= 10
    used = np.flatnonzero((pixels.min(axis=2) < 200).any(axis=1))
    assert used.max() > 2500, "the page is as long as its figures"
