"""docs/configuration.md names every key of both schemas, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from flairhub.config import TrainConfig, ZonalConfig
from flairhub.config.problems import models_in
from flairhub.modalities import INPUTS, LABELS

TEXT = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
ROWS = [line.split("|")[1] for line in TEXT.splitlines() if line.startswith("|")]
NAMED = {part for row in ROWS for key in re.findall(r"`([^`]+)`", row) for part in key.split(".")}
SECTIONS = {"paths", "tasks", "hyperparams", "hardware", "saving", "modalities", "models", "labels", "labels_configs"}
SECTIONS |= {"pre_processings", "normalization"}


def keys(schema) -> Iterator[str]:
    for key, info in schema.model_fields.items():
        yield key
        for model in models_in(info.annotation):
            yield from keys(model)


def test_every_key_is_documented():
    wanted = {*keys(TrainConfig), *keys(ZonalConfig)} - {*INPUTS, *LABELS}
    assert wanted - NAMED - SECTIONS == set()


def test_no_key_is_invented():
    known = {*keys(TrainConfig), *keys(ZonalConfig)}
    assert {key for key in NAMED if not key.startswith("<") and key != "N"} - known == set()
