"""Files to cube. See docs/ingest.md."""

from flairhub.ingest.run import IngestReport, ingest

__all__ = ["IngestReport", "ingest"]
