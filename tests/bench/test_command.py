"""The command line at tiny size: what it writes, and what it does without the data libraries."""

import json
import subprocess
import sys

import jax
import pytest

from mmcl_jax.bench import __main__ as command
from mmcl_jax.bench import roofline

# What a machine that is only measured need not have.
_BLOCKED = (
    "grain",
    "ml_collections",
    "tensorflow_datasets",
    "array_record",
    "sklearn",
    "matplotlib",
)


def test_step_without_the_data_libraries(tmp_path):
    script = (
        "import sys\n"
        f"for name in {_BLOCKED}: sys.modules[name] = None\n"
        "from mmcl_jax.bench.__main__ import main\n"
        f"sys.exit(main(['mdm', '--size', 'tiny', '--rounds', '2', '--json', {str(tmp_path)!r} "
        "'/bench.json']))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "examples/s" in done.stdout
    written = json.loads((tmp_path / "bench.json").read_text())
    assert written["format"] == 1
    assert {"device", "platform", "packages", "cores"} <= written["machine"].keys()
    (row,) = written["benches"]["mdm"]
    assert len(row["step_s"]["samples"]) == 2
    assert row["step_s"]["min"] <= row["step_s"]["median"] <= row["step_s"]["max"]
    assert row["examples_per_s"] == pytest.approx(row["batch_size"] / row["step_s"]["median"])
    assert row["model_flop_per_s"] > 0
    assert row["memory"]["argument"] > 0
    assert row["compile"]["compile_s"] > 0
    for name in ("share_of_matmul", "matmul_flop_per_s", "bandwidth_bytes_per_s"):
        assert len(row[name]["samples"]) == 2
    assert row["roofline"]["bound"] in ("FLOPs", "bytes")
    assert row["peers"] == {}


def test_memory_and_embedding(capsys, tmp_path):
    file = tmp_path / "bench.json"
    arguments = ["memory", "embed", "--size", "tiny", "--rounds", "1", "--json", str(file)]
    assert command.main(arguments) == 0
    assert "as compiled for cpu" in capsys.readouterr().out
    written = json.loads(file.read_text())["benches"]
    assert written["memory"][0]["peak_or_total"] >= written["memory"][0]["argument"] > 0
    assert written["embed"][0]["name"] == "embed"


def test_preparation_and_profile(capsys, tmp_path):
    arguments = ["prepare", "roofline", "--size", "tiny", "--rounds", "1"]
    assert command.main([*arguments, "--profile", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "clipping, baseline, z-score" in printed
    assert "block_*/mlp/fc1" in printed
    assert list(tmp_path.rglob("*.trace.json.gz"))


def test_benches_that_fail_do_not_end_the_others(monkeypatch, capsys, tmp_path):
    """Data libraries may be absent, memory may not suffice."""
    monkeypatch.setitem(sys.modules, "mmcl_jax.bench.input_rate", None)
    arguments = ["input", "memory", "--size", "tiny", "--json", str(tmp_path / "bench.json")]
    assert command.main(arguments) == 1
    printed = capsys.readouterr()
    assert "input failed" in printed.out
    assert printed.err.startswith("error: input: ")
    written = json.loads((tmp_path / "bench.json").read_text())
    assert list(written["benches"]) == ["memory"]
    assert "input_rate" in written["failed"]["input"]


def test_every_bench_has_its_functions():
    import importlib

    for module in set(command.BENCHES.values()):
        bench = importlib.import_module(f"mmcl_jax.bench.{module}")
        assert callable(bench.run)
        assert callable(bench.table)


def test_mistakes_end_in_one_line(capsys):
    assert command.main(["mdn"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: no bench named mdn; known: mdm")
    assert error.count("\n") == 1
    with pytest.raises(SystemExit):
        command.main(["mdm", "--batch", "0"])


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "jit(step)/transpose(jvp(Objective))/ecg_encoder/block_0/mlp/fc1/dot_general",
            ("backward", "ecg_encoder/block_*/mlp/fc1"),
        ),
        (
            "jit(step)/jvp(Objective)/ecg_encoder/block_1/attention/while/body/checkpoint/add",
            ("forward", "ecg_encoder/block_*/attention"),
        ),
        ("jit(step)/shard_map/vmap(jit(clip))/max", ("other", "shard_map")),
        ("", ("other", "outside modules")),
    ],
)
def test_place_of_an_instruction(source, expected):
    assert roofline.place(source) == expected


def test_instructions_of_a_program():
    program = (
        "  %dot.3 = f32[8,4]{1,0} dot(%a, %b), lhs_contracting_dims={1}, "
        'metadata={op_name="jit(f)/dot_general"}\n'
        "  ROOT %fusion.1 = (f32[2]{0}, s32[]) fusion(%dot.3), kind=kLoop\n"
    )
    found = roofline.instructions(program)
    assert found["dot.3"] == ("dot", "f32[8,4]", "jit(f)/dot_general")
    assert found["fusion.1"] == ("fusion", "(f32[2], s32[])", "")


def test_a_kernel_of_unknown_origin_counts_on_a_gpu(monkeypatch):
    known = {
        "dot.3": ("dot", "f32[8]", "jit(f)/jvp(O)/head/dot_general"),
        "call.1": ("call", "", ""),
    }
    assert roofline._group("dot.3", known) == ("head", "forward", "dot", "f32[8]")
    assert roofline._group("call.1", known) is roofline._group("python", known) is None
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert (
        roofline._group("call.1", known)[0] == roofline._group("nccl", known)[0] == "not attributed"
    )
