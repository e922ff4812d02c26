"""On the made data set the inputs matter in the expected order: crops need the season, land cover the detail."""

from pathlib import Path

import numpy as np
import pytest

from flairhub.config import load_train_config
from flairhub.demo import DemoPlan, make_demo_data
from flairhub.ingest import ingest
from flairhub.modalities import INPUTS
from flairhub.training import train

LAND, CROP = "AERIAL_LABEL-COSIA", "ALL_LABEL-LPIS"
PLAN = DemoPlan(
    roi_splits=(("train", "train", "valid", "test"), ("train", "train", "train", "test")),
    zone_grid=(1, 2),
    epochs=20,
)
CHOICES = {
    "aerial": ("AERIAL_RGBI",),
    "season": ("SENTINEL2_TS",),
    "both": ("AERIAL_RGBI", "SENTINEL2_TS"),
}
SEEDS = (0, 1)


@pytest.mark.slow
def test_inputs_matter_in_the_expected_order(tmp_path: Path) -> None:
    data = make_demo_data(tmp_path / "demo", seed=5, plan=PLAN)
    ingest(load_train_config(data.configs), cube=data.cube)
    actual: dict[tuple[str, str], list[float]] = {}
    for choice, inputs in CHOICES.items():
        for seed in SEEDS:
            flags = [f"modalities.inputs.{name}={str(name in inputs).lower()}" for name in INPUTS]
            overrides = [*flags, f"hyperparams.seed={seed}", f"paths.out_model_name={choice}_{seed}"]
            overrides += ["tasks.write_files=false", "saving.log_images=0"]
            result = train(load_train_config(data.configs, overrides))
            for task in (LAND, CROP):
                actual.setdefault((choice, task), []).append(result.metrics["tasks"][task]["strict"]["miou"])
    worst = {key: min(values) for key, values in actual.items()}
    best = {key: max(values) for key, values in actual.items()}
    shown = {" ".join(key): np.round(values, 3).tolist() for key, values in actual.items()}
    assert worst["season", CROP] > best["aerial", CROP] + 0.15, shown
    assert worst["aerial", LAND] > best["season", LAND] + 0.1, shown
    for task in (LAND, CROP):
        single = max(np.mean(actual["aerial", task]), np.mean(actual["season", task]))
        assert np.mean(actual["both", task]) > single - 0.02, shown
