"""Figures and reports: arrays and facts in, the path of a PNG or an HTML file out."""

from flairhub.report.charts import save_confusion, save_curves
from flairhub.report.patch_panels import PanelRow, clearest_date, example_rows, save_panels, view
from flairhub.report.quicklook import draw_map, save_quicklook
from flairhub.report.run_report import write_html
from flairhub.report.style import class_colormap, class_handles, percentile_limits, stretch

__all__ = [
    "PanelRow",
    "class_colormap",
    "class_handles",
    "clearest_date",
    "draw_map",
    "example_rows",
    "percentile_limits",
    "save_confusion",
    "save_curves",
    "save_panels",
    "save_quicklook",
    "stretch",
    "view",
    "write_html",
]
