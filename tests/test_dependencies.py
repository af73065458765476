"""What `setup.cfg` asks for."""

import configparser
import pathlib

import pytest

packaging = pytest.importorskip("packaging.requirements", reason="reads the requirements")

FILE = pathlib.Path(__file__).parents[1] / "setup.cfg"


def requirements():
    config = configparser.ConfigParser()
    config.read(FILE)
    blocks = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    for line in "\n".join(blocks).split("\n"):
        if line.strip():
            yield packaging.Requirement(line)


def test_every_dependency_is_bounded_on_both_sides():
    for requirement in requirements():
        bounds = {specifier.operator for specifier in requirement.specifier}
        assert bounds == {">=", "<"}, str(requirement)


def test_a_dependency_has_the_same_bounds_wherever_it_is_named():
    found = {}
    for requirement in requirements():
        assert found.setdefault(requirement.name, requirement.specifier) == requirement.specifier
