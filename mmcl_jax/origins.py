"""Where the towers of a stage come from: earlier stages, other runs, folders of `mmcl_jax.port`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmcl_jax.data.cohort import check_settings
from mmcl_jax.port import ported
from mmcl_jax.stages import Stage
from mmcl_jax.transplant import transplant

if TYPE_CHECKING:
    from mmcl_jax.experiment import Experiment


def check(experiment: "Experiment", to_train: Sequence[Stage]) -> None:
    """Reads what comes from outside the run, before hours are spent on the stages before it, and
    sees that the run's own stages on which others build are done or trained as well.

    Raises:
        FileNotFoundError, ValueError: an origin that is not there, not done, or of other settings.
    """
    trained = [stage.name for stage in to_train]
    checked = set()
    for stage in to_train:
        for tower, origin in stage.config["init"].items():
            outside = ":" in origin or ported.is_ported(origin)
            if outside and (stage.group, tower) not in checked:
                checked.add((stage.group, tower))
                _find(experiment, stage, tower)
            elif not outside and origin not in trained and not experiment.run.done(origin):
                raise ValueError(
                    f"stage {stage.name} takes {tower} from stage {origin}, which is not done and "
                    f"not among the stages to run; add {origin} to --stages"
                )


def take_over(experiment: "Experiment", stage: Stage, params: Any, extra: Any) -> tuple[Any, Any]:
    """Parameters and extra collections with the towers that `init` of the stage names replaced.

    Raises:
        FileNotFoundError, ValueError: an origin that is not there, not done, or does not fit.
    """
    for tower in stage.config["init"]:
        found, wanted = _find(experiment, stage, tower)
        rules = {
            "new": stage.config["new"],
            "unused": stage.config["unused"],
            "origin": found.origin,
        }
        fitted = {tower: ported.fit_positions(found.params[tower], wanted, found.origin)}
        params = transplant(params, fitted, tower, **rules)
        for collection in extra:
            if tower in extra[collection]:
                moved = transplant(extra[collection], found.extra[collection], tower, **rules)
                extra = {**extra, collection: moved}
    return params, extra


def _find(
    experiment: "Experiment", stage: Stage, tower: str
) -> tuple[ported.Towers, dict[str, Any]]:
    """The towers where this one comes from, and the settings that it has to have."""
    found = _read(experiment, stage, stage.config["init"][tower])
    if tower not in found.models:
        raise ValueError(
            f"stage {stage.name} takes {tower} from {found.origin}, which has only "
            f"{', '.join(found.models)}"
        )
    wanted = {**experiment.config["models"][tower], **stage.config["towers"][tower]}
    found.check(tower, wanted)
    return found, wanted


def _read(experiment: "Experiment", stage: Stage, origin: str) -> ported.Towers:
    """What `origin` names: an earlier stage, RUN:STAGE, or a folder of `mmcl_jax.port`."""
    if ported.is_ported(origin) and origin not in [other.name for other in experiment.stages]:
        return ported.read(origin)
    folder, _, name = origin.rpartition(":")
    source = type(experiment).open(folder) if folder else experiment
    source.require_done(name)
    # What their other towers read, this stage may do without.
    trained_on = source.trained_on(name)
    fields = [field for field in stage.config["fields"] if field in trained_on]
    check_settings(experiment.cohort, {field: trained_on[field] for field in fields})
    return ported.read(f"{source.run.path}:{name}")
