"""What the command lines say about the configuration that they run."""

import pytest
from absl import flags
from ml_collections import config_flags

from mmcl_jax.flag_errors import config_line

CONFIG = """
import ml_collections

def get_config(words="none"):
    return ml_collections.ConfigDict({"words": words})
"""


@pytest.mark.parametrize("argument", ["", ":demo,sweep", ":a:b"])
def test_the_file_that_runs_is_named_with_its_argument(tmp_path, monkeypatch, argument):
    (tmp_path / "mine.py").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    values(["program", f"--config=mine.py{argument}"])
    monkeypatch.setattr(flags, "FLAGS", values)
    assert config_line() == (f"configuration, run as Python code: {tmp_path / 'mine.py'}{argument}")
