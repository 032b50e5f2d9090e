"""The table of GPUs, and how they are named."""

import pytest

from rebus.errors import ConfigError
from rebus.training.devices import DEVICES, device_named, parse_gpus, peak_here


@pytest.mark.parametrize(
    ("text", "name", "per_node", "nodes"),
    [("A100-40G", "A100-40G", 1, 1), ("8xa100-40g", "A100-40G", 8, 1), ("2x8xH100", "H100", 8, 2)],
)
def test_gpus_are_read_as_people_write_them(text: str, name: str, per_node: int, nodes: int):
    gpus = parse_gpus(text)
    assert (gpus.device.name, gpus.per_node, gpus.num_nodes, gpus.num) == (name, per_node, nodes, per_node * nodes)
    assert parse_gpus(str(gpus)) == gpus


@pytest.mark.parametrize("text", ["8xA100", "0xH100", "H1000", "x", ""])
def test_what_is_no_gpu_is_refused(text: str):
    with pytest.raises(ConfigError, match="GPU"):
        parse_gpus(text)


@pytest.mark.parametrize(
    ("seen", "name"),
    [
        ("NVIDIA A100-SXM4-40GB", "A100-40G"),
        ("NVIDIA A100 80GB PCIe", "A100-80G-PCIe"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX-6000-Ada"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
    ],
)
def test_the_device_that_runs_is_known_by_its_name(seen: str, name: str):
    found = device_named(seen)
    assert found is not None
    assert found.name == name


def test_what_is_not_known_has_no_peak():
    assert device_named("NVIDIA L400") is None
    assert peak_here("cpu") is None


def test_every_device_says_where_its_figures_are_from():
    assert len({device.name for device in DEVICES}) == len(DEVICES)
    for device in DEVICES:
        assert device.source
        assert device.memory < device.memory_gib * 2**30
        assert parse_gpus(device.name).device is device
