import pytest

from mmcl_jax import models
from mmcl_jax.models import head, mae_decoder, projector, resnet, vit


@pytest.mark.parametrize("network", [head, mae_decoder, projector, resnet, vit])
def test_every_network_is_built_by_the_name_of_its_file(network):
    name = network.__name__.rsplit(".")[-1]
    fields = {"outputs": 3} if name == "head" else {}
    assert isinstance(models.build({"name": name, **fields}), network.Model)


def test_fields_are_passed_on_and_lists_become_tuples():
    network = models.build({"name": "vit", "depth": 1, "patch": [1, 50]})
    assert network.depth == 1
    assert network.patch == (1, 50)


def test_unknown_network_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'vti'.*'mae_decoder'.*'vit'"):
        models.build({"name": "vti"})
    with pytest.raises(ValueError, match="attention"):  # a file without a Model
        models.build({"name": "attention"})


def test_unknown_field_names_the_known_ones():
    with pytest.raises(ValueError, match=r"\['dept'\].*'depth'"):
        models.build({"name": "vit", "dept": 3})
    with pytest.raises(ValueError, match="parent"):
        models.build({"name": "vit", "parent": None})
