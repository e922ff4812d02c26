"""Figures: arrays and facts in, the path of a PNG out."""

from flairhub.report.confusion import save_confusion
from flairhub.report.curves import save_curves
from flairhub.report.panels import PanelRow, save_panels
from flairhub.report.quicklook import save_quicklook
from flairhub.report.stretch import clearest_date, percentile_limits, stretch

__all__ = [
    "PanelRow",
    "clearest_date",
    "percentile_limits",
    "save_confusion",
    "save_curves",
    "save_panels",
    "save_quicklook",
    "stretch",
]
