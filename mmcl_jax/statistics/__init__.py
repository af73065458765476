"""Test metrics, their intervals, and comparisons of methods on the same subjects."""
