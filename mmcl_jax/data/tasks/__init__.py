"""One record from its source to its place in the cohort."""
