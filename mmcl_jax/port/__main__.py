"""`python -m mmcl_jax.port --from X --to Y`."""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Sequence

import jax
from absl import logging

from mmcl_jax import port
from mmcl_jax.port import ported, torch_towers
from mmcl_jax.port.ported import Towers
from mmcl_jax.port.torch_towers import DTYPES, SUFFIXES, Notes


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns its exit code."""
    options = _parser().parse_args(arguments)
    # Orbax logs every file that it writes.
    logging.set_verbosity(logging.ERROR)
    try:
        _port(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _port(options: argparse.Namespace) -> None:
    source, target = options.source, pathlib.Path(options.target)
    to_file = target.suffix in SUFFIXES
    from_file = pathlib.Path(source).suffix in SUFFIXES and not pathlib.Path(source).is_dir()
    if not to_file and not from_file:
        raise ValueError(
            f"{source} to {target}: one of them has to be a PyTorch file, named "
            f"{', '.join(f'*{suffix}' for suffix in SUFFIXES)}"
        )
    if to_file and target.exists() and not options.overwrite:
        raise FileExistsError(f"{target} exists already; --overwrite replaces it")
    if from_file:
        found, notes = torch_towers.load(
            pathlib.Path(source),
            heads=options.heads,
            decoder_heads=options.decoder_heads,
            leads=options.leads,
            allow_missing=options.allow_missing,
        )
    else:
        found, notes = ported.read(source), None
    if options.towers:
        found = found.only(options.towers)
    if options.samples:
        found = _with_length(found, options.samples)
    print(f"{source} -> {target}")
    print(_table(found))
    if notes:
        print(_report(notes), end="")
    if to_file:
        written = torch_towers.save(target, found, dtype=options.dtype)
        types = sorted({str(array.dtype) for array in written.values()})
        print(f"wrote {len(written)} keys: {', '.join(types)}")
    else:
        ported.write(target, found, overwrite=options.overwrite)
        print(_use(found, target), end="")


def _with_length(found: Towers, samples: int) -> Towers:
    """Positions of the ECG encoder and its decoder for recordings of another length."""
    params, specs = dict(found.params), dict(found.models)
    for tower in {"ecg_encoder", "decoder"} & set(specs):
        patch = specs[tower]["patch"][1]
        if samples < patch or samples % patch:
            raise ValueError(f"--samples {samples} is no whole number of patches of {patch}")
        specs[tower] = {**specs[tower], "samples": samples}
        params[tower] = ported.fit_positions(params[tower], specs[tower], found.origin)
    return dataclasses.replace(found, params=params, models=specs)


def _table(found: Towers) -> str:
    lines = []
    for tower, spec in found.models.items():
        leaves = jax.tree.leaves(found.params[tower])
        sizes = ", ".join(f"{key} {value}" for key, value in spec.items() if key != "name")
        count = sum(leaf.size for leaf in leaves)
        lines.append(f"  {tower}: {spec['name']}, {sizes}; {count:,} parameters")
    return "\n".join(lines)


def _report(notes: Notes) -> str:
    lines = [f"keys: {len(notes.used)} weights read"]
    if notes.counters:
        lines.append(f"  {len(notes.counters)} counters of batches kept")
    if notes.missing:
        lines.append(f"  {len(notes.missing)} absent, as allowed: {', '.join(notes.missing)}")
    if notes.unknown:
        lines.append(f"  {len(notes.unknown)} not used, of no network here:")
        lines += [f"    {key} {tuple(shape)}" for key, shape in notes.unknown.items()]
    if notes.left:
        lines.append(f"beside the weights, left out: {', '.join(notes.left)}")
    if notes.foreign:
        lines.append(f"classes in the file that were not read: {', '.join(notes.foreign)}")
    lines += notes.remarks
    return "\n".join(lines) + "\n"


def _use(found: Towers, target: pathlib.Path) -> str:
    """How a stage starts from the folder, with the sizes that configurations may say otherwise."""
    # Positions are fitted to the length that the configuration reads.
    settings = ("width", "depth", "heads")
    lines = ["to start a stage from it:"]
    for tower, spec in found.models.items():
        if tower in ("ecg_encoder", "cmr_encoder"):
            stage = "finetune" if tower == "ecg_encoder" else "mmcl"
            lines.append(f"  --config.stages.{stage}.init.{tower}={target}")
            sizes = {key: spec[key] for key in settings if key in spec}
            lines.append(f"  {' '.join(ported.flags(tower, sizes))}")
        if tower == "ecg_encoder" and "fc_norm" not in found.params[tower]:
            fresh = "('ecg_encoder/attention_pool','ecg_encoder/fc_norm')"
            lines.append(f'  --config.stages.finetune.new="{fresh}", where it is not so already')
    return "\n".join(lines) + "\n" if len(lines) > 1 else ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mmcl_jax.port",
        description=port.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="X",
        help="PyTorch or safetensors file, folder that this command wrote, or RUN:STAGE",
    )
    parser.add_argument(
        "--to", dest="target", required=True, metavar="Y", help="folder, or file by its suffix"
    )
    parser.add_argument("--heads", type=int, metavar="N", help="attention heads of the ECG encoder")
    parser.add_argument(
        "--decoder-heads", type=int, metavar="N", help="attention heads of the MAE decoder"
    )
    parser.add_argument(
        "--leads", type=int, metavar="N", help="leads of the recordings; default 12"
    )
    parser.add_argument(
        "--samples",
        type=int,
        metavar="N",
        help="samples of a recording; positions are interpolated to another length",
    )
    parser.add_argument(
        "--towers",
        type=lambda text: text.split(","),
        metavar="A,B",
        help="only these, such as ecg_encoder",
    )
    parser.add_argument(
        "--allow-missing",
        action="append",
        default=[],
        metavar="PATTERN",
        help="regular expression of PyTorch keys that may be absent; may be given more than once",
    )
    parser.add_argument(
        "--dtype",
        choices=("keep", *DTYPES),
        default="keep",
        help="numbers of the file that is written; default: those of the file they came from",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace Y once the new one is done"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
