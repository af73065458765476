"""A folder with one sub-folder per training step, each of them whole or told from the whole ones.

<step>            whole: written to the end, with a manifest of its files
<step>.unsealed   written to the end, its manifest is being made
any other name    what a save or a removal that was cut off has left
"""

import contextlib
import pathlib
import shutil

import jax
import orbax.checkpoint as ocp

from mmcl_jax import manifest
from mmcl_jax.retry import say

UNSEALED = ".unsealed"
KEPT = 2


class DamagedCheckpoint(ValueError):
    """There are checkpoints, and none of them is whole."""

    def __init__(self, folder: pathlib.Path):
        super().__init__(
            f"{folder}: no checkpoint is whole. Copy one back from a backup, or delete "
            f"{folder.parent.parent} to run the stage again"
        )


class SealedPath(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """What Orbax writes to `<step>.unsealed` gets its manifest and then the name `<step>`.

    Of several processes, the first one does this.
    """

    async def finalize(self) -> None:
        await super().finalize()
        unsealed = pathlib.Path(self.get_final())
        manifest.write(unsealed)
        final = unsealed.with_suffix("")
        former = _set_aside(final)
        unsealed.rename(final)
        shutil.rmtree(former, ignore_errors=True)


def steps(folder: pathlib.Path) -> list[int]:
    """Steps of a folder, the last one first. Raises FileNotFoundError where there is none."""
    names = [path.name for path in folder.iterdir()]
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def newest_whole(folder: pathlib.Path, aside: pathlib.Path) -> int | None:
    """The last step that is whole, None without any step. Damaged later ones are moved to `aside`.

    Raises:
        DamagedCheckpoint: there are steps, and none is whole; they stay where they are.
    """
    whole, damaged = None, {}
    for step in steps(folder):
        problem = manifest.problem(folder / str(step))
        if not problem:
            whole = step
            break
        damaged[step] = problem
    for step, problem in damaged.items():
        path, moved = folder / str(step), aside / f"{folder.name}-{step}"
        if whole is None:
            say(f"{path} is damaged ({problem})")
            continue
        remove(moved)
        aside.mkdir(exist_ok=True)
        path.rename(moved)
        say(f"{path} is damaged ({problem}) and was moved to {moved}; using the one before")
    if damaged and whole is None:
        raise DamagedCheckpoint(folder)
    return whole


def prune(folder: pathlib.Path) -> None:
    """Keeps the last `KEPT` steps; of several processes, the first one does."""
    if jax.process_index() == 0:
        # What cannot be removed now is removed after the next save.
        with contextlib.suppress(OSError):
            for step in steps(folder)[KEPT:]:
                remove(folder / str(step))


def name_sealed(folder: pathlib.Path) -> None:
    """Gives a step that has its manifest, and was cut off before it had its name, that name; of
    several processes, the first one does."""
    if jax.process_index() == 0:
        for path in folder.glob(f"*{UNSEALED}"):
            final = path.with_suffix("")
            if not final.exists() and not manifest.problem(path):
                path.rename(final)


def tidy(folder: pathlib.Path) -> None:
    """Removes what is no step; of several processes, the first one does."""
    if jax.process_index() == 0:
        # What cannot be removed now is removed after the next save.
        with contextlib.suppress(OSError):
            for path in folder.iterdir():
                if not path.name.isdigit():
                    shutil.rmtree(path, ignore_errors=True)


def remove(path: pathlib.Path) -> None:
    """Removes a step. It loses its name first: half of one would pass for a damaged one."""
    shutil.rmtree(_set_aside(path), ignore_errors=True)


def _set_aside(path: pathlib.Path) -> pathlib.Path:
    """Where a step is once it is none any more, if it was one."""
    former = path.with_name(f"{path.name}.removed")
    shutil.rmtree(former, ignore_errors=True)
    if path.exists():
        path.rename(former)
    return former
