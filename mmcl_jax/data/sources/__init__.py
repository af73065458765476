"""Sources of recordings: one file per data set or layout.

`python -m mmcl_jax.prepare NAME` reads the file of that name here, with `_` for `-`. It has

    EXAMPLE                what follows the name in the example of the help
    add_arguments(parser)  the options of this source
    make(**options)        the `mmcl_jax.data.subject.Source` that they describe

and may import what only this source needs.
"""
