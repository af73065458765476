"""Collectives as counted in the text of a program, and a tiny program of two devices."""

import pytest

from mmcl_jax.bench import __main__ as command
from mmcl_jax.bench import collectives

HLO = """
%region_0.3 (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

ENTRY %main.9 (p: f32[4,8]) -> f32[32,8] {
  %all-gather.1 = f32[32,8]{1,0} all-gather(%p), replica_groups=[1,8]<=[8], dimensions={0}
  %all-reduce.2 = (f32[10]{0}, bf16[4,2]{1,0}) all-reduce(%x, %y), replica_groups={{0,1},{2,3}}
  %reduce-scatter.3 = f32[2]{0} reduce-scatter(%z), replica_groups=[1,4]<=[4], dimensions={0}
  %collective-permute.4 = s32[3]{0} collective-permute(%w), source_target_pairs={{0,1},{1,0}}
  %all-to-all.5 = f32[8]{0} all-to-all(%v), replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
  ROOT %fusion = f32[32,8]{1,0} fusion(%all-gather.1), calls=%fused
}
"""


def test_what_is_counted():
    assert collectives.count(HLO) == {
        "all-gather": {"count": 1, "bytes": 1024, "sent": 896},
        "all-reduce": {"count": 1, "bytes": 56, "sent": 56},
        "reduce-scatter": {"count": 1, "bytes": 8, "sent": 24},
        "all-to-all": {"count": 1, "bytes": 32, "sent": 24},
        "collective-permute": {"count": 1, "bytes": 12, "sent": 12},
    }


def test_a_loop_is_not_guessed_at():
    with pytest.raises(ValueError, match="outside the main program: %all-gather.1"):
        collectives.count(HLO.replace("ENTRY %main.9", "%body.9"))


def test_groups_that_are_not_told_are_an_error():
    with pytest.raises(ValueError, match="without the devices that take part"):
        collectives.count(HLO.replace("replica_groups=[1,8]<=[8], ", ""))


def test_efficiency_is_computing_over_all():
    one = {"all-reduce": {"count": 2, "bytes": 0, "sent": 500}}
    flops = 3 * collectives.UTILISATION
    # 3 s of computing; 2 starts of 0.25 s and 500 bytes at 1,000 bytes/s.
    assert collectives.efficiency(flops, one, 1000, 0.25, 1.0) == pytest.approx(3 / 4)


@pytest.mark.nightly
def test_gradients_are_added_up_over_two_devices(capsys):
    assert command.main(["collectives", "--size", "tiny"]) == 0
    lines = capsys.readouterr().out.splitlines()
    name, how, devices, per_device, number, *_ = next(x for x in lines if "replicate" in x).split()
    assert (name, how, devices, per_device) == ("mdm", "replicate", "2", "2")
    assert int(number) >= 1
