"""The rules both sides obey: time, windows, exact arithmetic, row layout, the plan. Pure; NumPy and nothing heavier."""

__version__ = "0.1.0"
