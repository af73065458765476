"""Reports: of one run, and of the runs that the paper compares.

    python -m mmcl_jax.report RUN                 RUN/report/index.html
    python -m mmcl_jax.report --workdir FOLDER    FOLDER/report/index.html, from all runs below it

See docs/report.md.
"""

from mmcl_jax.report.paper_report import write_paper_report
from mmcl_jax.report.run_report import run, write_report

__all__ = ["run", "write_paper_report", "write_report"]
