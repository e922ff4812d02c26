"""Every published row builds its network, here with a tiny encoder in the place of the published one."""

from __future__ import annotations

import pytest

from flairhub.config import load_train_config
from flairhub.models import build_network
from flairhub.training.training_plan import training_plan
from tests.helpers.pipelines import ROWS, TRAININGS

TINY = ["models.monotemp_model.arch=tu-test_resnet.r160_in1k-linknet", "models.monotemp_model.pretrained=false"]


@pytest.mark.parametrize("name", ROWS)
def test_it_builds(name: str) -> None:
    config = load_train_config(TRAININGS[name], TINY)
    plan = training_plan(config)
    network = build_network(plan.spec)
    assert tuple(network.encoders) == config.modalities.active
    assert set(network.main_decoders) == (set(config.labels) if network.reference or plan.spec.series_heads else set())
    several = len(config.modalities.active) > 1
    assert set(plan.spec.aux) == (set(config.modalities.active) if several else set())
    for objective in plan.objectives:
        assert objective.class_weights.shape == (objective.task.n_classes,)
