"""Files to cube. See docs/ingest.md."""

import sys
from inspect import Signature, signature
from types import ModuleType
from typing import Any

from flairhub.ingest.run import IngestReport, ingest, nodata_classes
from flairhub.ingest.tables import read_csv
from flairhub.ingest.zone_ingest import ZoneIngestReport, ingest_zone

__all__ = [
    "IngestReport",
    "ZoneIngestReport",
    "ingest",
    "ingest_zone",
    "nodata_classes",
    "read_csv",
]


class _CallableModule(ModuleType):
    """Makes `flairhub.ingest(...)` work also after this package was imported, which binds its name in `flairhub`."""

    @property
    def __signature__(self) -> Signature:
        return signature(ingest)

    def __call__(self, *args: Any, **options: Any) -> IngestReport:
        return ingest(*args, **options)


sys.modules[__name__].__class__ = _CallableModule
