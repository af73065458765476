"""What `srun` does, as far as the launch scripts need it: tasks on this machine.

FAKE_TASKS of them run the command, with the environment that SLURM gives a task. The exit status is
the highest one. With --kill-on-bad-exit=1 the others are ended when one fails. The process ids are
written to FAKE_PIDS.
"""

import os
import pathlib
import subprocess
import sys
import time

options = [argument for argument in sys.argv[1:] if argument.startswith("--")]
command = sys.argv[1:][next(i for i, a in enumerate(sys.argv[1:]) if not a.startswith("--")) :]
ends_together = options[:1] == ["--kill-on-bad-exit=1"]
count = int(os.environ["FAKE_TASKS"])
tasks = [
    subprocess.Popen(
        command,
        env={
            **os.environ,
            "SLURM_NTASKS": str(count),
            "SLURM_PROCID": str(number),
            "SLURM_LOCALID": str(number),
            "SLURM_STEP_NODELIST": "localhost",
        },
    )
    for number in range(count)
]
pathlib.Path(os.environ["FAKE_PIDS"]).write_text(" ".join(str(task.pid) for task in tasks))
while any(task.poll() is None for task in tasks):
    if ends_together and any(task.poll() for task in tasks):
        time.sleep(5)
        for task in tasks:
            task.terminate()
    time.sleep(0.05)
sys.exit(max(128 - code if code < 0 else code for code in (task.returncode for task in tasks)))
