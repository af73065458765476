"""Readers of file formats: bytes in, arrays and header fields out."""
