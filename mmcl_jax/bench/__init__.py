"""What a step costs and how fast it could be: `python -m mmcl_jax.bench`, see `__main__.py`."""
