"""A made data set that can be learnt, and the whole chain on it."""

from flairhub.demo.area import DemoPlan
from flairhub.demo.dataset import DemoData, make_demo_data

__all__ = ["DemoData", "DemoPlan", "make_demo_data"]
