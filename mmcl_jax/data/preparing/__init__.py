"""From a data set to a cohort: admission, work blocks, inspection and its pages."""
