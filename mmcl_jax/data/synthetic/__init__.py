"""Simulated subjects: heart, disease, ECG and CMR from one set of hidden variables."""
