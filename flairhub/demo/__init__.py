"""A made data set that can be learnt, and the whole chain on it."""

from flairhub.demo.area import DemoPlan
from flairhub.demo.dataset import DemoData, make_demo_data
from flairhub.demo.walkthrough import TITLES, DemoResult, run_demo

__all__ = ["TITLES", "DemoData", "DemoPlan", "DemoResult", "make_demo_data", "run_demo"]
