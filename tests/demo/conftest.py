"""One small made data set for the tests of the demo."""

from __future__ import annotations

import pytest

from flairhub.demo import DemoData, DemoPlan, make_demo_data

SMALL = DemoPlan(roi_splits=(("train", "valid"), ("test",)), roi_grid=(2, 3), zone_grid=(1, 2))


@pytest.fixture(scope="session")
def small_plan() -> DemoPlan:
    """Two domains, three ROIs of 2 x 3 cells, a zone of two patches."""
    return SMALL


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> DemoData:
    """The made data set of `small_plan`, seed 3. Read only."""
    return make_demo_data(tmp_path_factory.mktemp("demo") / "data", seed=3, plan=SMALL)
