"""Prepares the blocks of a cohort with Apache Beam, on whatever its runner offers.

Beam gets the source and the tasks of each block that is not finished; a worker loads the records
of a block and writes its files and its journal into the folder of the unfinished cohort, which
every worker has to see under the same path. What enters the cohort is decided afterwards, by the
process that started it, in the order of the tasks, so the cohort is the one of a local run.
"""

import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from mmcl_jax.data.preparing.blocks import Blocks, write_block
from mmcl_jax.data.preparing.loading import without_tasks
from mmcl_jax.data.subject import Source

try:
    import apache_beam
    from apache_beam.options.pipeline_options import PipelineOptions
except ImportError as error:
    raise ImportError("--runner needs Apache Beam: pip install 'mmcl_jax[beam]'") from error


def write_blocks(
    source: Source,
    blocks: Blocks,
    missing: Sequence[int],
    *,
    runner: str,
    options: Sequence[str] = (),
) -> None:
    """Writes the missing blocks; returns when all are there.

    Args:
        source: picklable.
        runner: such as 'DirectRunner' or 'DataflowRunner'.
        options: further options of the pipeline, as on a command line.

    Raises:
        RuntimeError: the pipeline failed; blocks that were finished stay.
    """
    if not missing:
        return
    print(f"{len(missing)} blocks of up to {blocks.size} records to {runner}", file=sys.stderr)
    work = [(number, tuple(blocks.tasks(number))) for number in missing]
    settings = PipelineOptions([f"--runner={runner}", *options])
    with apache_beam.Pipeline(options=settings) as pipeline:
        (
            pipeline
            | "blocks" >> apache_beam.Create(work)
            # Without it, one worker could get all of them.
            | "spread" >> apache_beam.Reshuffle()
            | "prepare" >> apache_beam.ParDo(_WriteBlock(without_tasks(source), blocks.path))
        )


class _WriteBlock(apache_beam.DoFn):
    def __init__(self, source: Source, folder: pathlib.Path):
        self._source, self._folder = source, folder.absolute()

    def process(self, element: tuple[int, Sequence[Any]]) -> Iterator[int]:
        number, tasks = element
        write_block(self._folder, number, self._source, tasks)
        yield number
