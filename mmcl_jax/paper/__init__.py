"""The runs that the paper compares: what they share, in which order, and what is chosen."""
