"""The CMR as arrays: cine frames, short-axis slices, ventricles and what is measured on them."""
