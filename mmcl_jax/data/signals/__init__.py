"""The ECG as an array: leads, quality, baseline, preprocessing."""
