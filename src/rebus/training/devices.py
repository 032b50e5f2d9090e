"""What GPUs can do by their makers' data sheets, and which one runs here. Light: no torch until it is asked for.

Figures are dense (no structured sparsity) and for sums in fp32, which is what training runs: half of what a data sheet
prints for sparsity, and on GeForce cards half of what it prints for sums in fp16.
"""

import re
from dataclasses import dataclass

from rebus.errors import ConfigError, nearest

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """One GPU. tflops: 10^12 FLOP/s of bf16 products, of fp16 where `has_bf16` is False. memory_gib: nominal.
    usable: the share of it that a program sees (an assumption: error correction and the driver take the rest).
    bandwidth: of its memory, link: to its neighbours by NVLink, both ways together, or by PCIe where it has none; both
    in 10^9 bytes/s. names: how torch.cuda.get_device_name begins for it. source: of the figures.
    """

    name: str
    memory_gib: float
    tflops: float
    bandwidth: float
    link: float
    names: tuple[str, ...]
    source: str
    has_bf16: bool = True
    usable: float = 0.98

    @property
    def memory(self) -> int:
        """Bytes that a program sees."""
        return int(self.memory_gib * GIB * self.usable)

    @property
    def peak(self) -> float:
        """FLOP/s."""
        return self.tflops * 1e12


ECC = 0.91
"""Of GDDR6 with error correction in the same memory a sixteenth goes to it, and the driver takes its own."""
PCIE_3, PCIE_4, PCIE_5 = 32.0, 64.0, 128.0

DEVICES = (
    Device("A100-40G", 40, 312, 1555, 600, ("NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB"), "NVIDIA A100 data sheet, 2021"),
    Device("A100-80G", 80, 312, 2039, 600, ("NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB"), "NVIDIA A100 data sheet, 2021"),
    Device("A100-40G-PCIe", 40, 312, 1555, PCIE_4, ("NVIDIA A100-PCIE-40GB",), "NVIDIA A100 data sheet, 2021"),
    Device("A100-80G-PCIe", 80, 312, 1935, PCIE_4, ("NVIDIA A100 80GB PCIe",), "NVIDIA A100 data sheet, 2021"),
    Device("H100", 80, 989.4, 3350, 900, ("NVIDIA H100 80GB HBM3",), "NVIDIA H100 data sheet, SXM, 2023"),
    Device("H100-PCIe", 80, 756, 2000, PCIE_5, ("NVIDIA H100 PCIe",), "NVIDIA H100 data sheet, PCIe, 2023"),
    Device("H100-NVL", 94, 835, 3938, 600, ("NVIDIA H100 NVL",), "NVIDIA H100 NVL data sheet, 2024"),
    Device("H200", 141, 989.4, 4800, 900, ("NVIDIA H200",), "NVIDIA H200 data sheet, SXM, 2024"),
    Device("B200", 180, 2250, 8000, 1800, ("NVIDIA B200",), "NVIDIA HGX B200 data sheet, 2024"),
    Device("L40S", 48, 362.05, 864, PCIE_4, ("NVIDIA L40S",), "NVIDIA L40S data sheet, 2023", usable=ECC),
    Device("A10", 24, 125, 600, PCIE_4, ("NVIDIA A10",), "NVIDIA A10 data sheet, 2021", usable=ECC),
    Device("A10G", 24, 70, 600, PCIE_4, ("NVIDIA A10G",), "NVIDIA A10G data sheet, 2021", usable=ECC),
    Device("L4", 24, 121, 300, PCIE_4, ("NVIDIA L4",), "NVIDIA L4 data sheet, 2023", usable=ECC),
    Device("T4", 16, 65, 320, PCIE_3, ("Tesla T4",), "NVIDIA T4 data sheet, 2018", has_bf16=False, usable=ECC),
    Device("V100-16G", 16, 125, 900, 300, ("Tesla V100-SXM2-16GB",), "NVIDIA V100 data sheet, 2020", has_bf16=False),
    Device("V100-32G", 32, 125, 900, 300, ("Tesla V100-SXM2-32GB",), "NVIDIA V100 data sheet, 2020", has_bf16=False),
    Device("A40", 48, 149.7, 696, 112.5, ("NVIDIA A40",), "NVIDIA A40 data sheet, 2021", usable=ECC),
    Device("RTX-A6000", 48, 154.8, 768, 112.5, ("NVIDIA RTX A6000",), "NVIDIA GA102 white paper, 2021"),
    Device("RTX-6000-Ada", 48, 364.2, 960, PCIE_4, ("NVIDIA RTX 6000 Ada",), "NVIDIA Ada white paper for RTX, 2023"),
    Device("RTX-3090", 24, 71, 936, PCIE_4, ("NVIDIA GeForce RTX 3090",), "NVIDIA GA102 white paper, 2021"),
    Device("RTX-4090", 24, 165.2, 1008, PCIE_4, ("NVIDIA GeForce RTX 4090",), "NVIDIA Ada white paper, 2023"),
    Device("RTX-5090", 32, 209.5, 1792, PCIE_5, ("NVIDIA GeForce RTX 5090",), "NVIDIA RTX Blackwell white paper, 2025"),
)


@dataclass(frozen=True)
class Gpus:
    """`num_nodes` machines with `per_node` GPUs of one kind each."""

    device: Device
    per_node: int = 1
    num_nodes: int = 1

    @property
    def num(self) -> int:
        return self.per_node * self.num_nodes

    def __str__(self) -> str:
        nodes = f"{self.num_nodes}x" if self.num_nodes > 1 else ""
        return f"{nodes}{self.per_node}x{self.device.name}"


def parse_gpus(text: str) -> Gpus:
    """`A100-40G`, `8xA100-40G`, or `2x8xH100`: two nodes of eight. Raises: ConfigError that names the nearest known."""
    found = re.fullmatch(r"(?:(?:([1-9]\d*)x)?([1-9]\d*)x)?(\S+)", text, re.IGNORECASE)
    if found is None:
        raise ConfigError(f"'{text}' names no GPUs: write 8xA100-40G, or 2x8xH100 for two nodes of eight.")
    nodes, per_node, name = found.groups()
    device = next((device for device in DEVICES if device.name.lower() == name.lower()), None)
    if device is None:
        known = [device.name for device in DEVICES]
        raise ConfigError(f"no GPU '{name}'{nearest(name.upper(), known)}; known: {', '.join(known)}.")
    return Gpus(device, int(per_node or 1), int(nodes or 1))


def device_named(name: str) -> Device | None:
    """The device that torch.cuda.get_device_name calls this; None where it is not known. Names begin alike (an A10 and
    an A10G), so the next character must end the word."""
    found = [
        (len(start), device)
        for device in DEVICES
        for start in device.names
        if name == start or name.startswith((f"{start} ", f"{start}-"))
    ]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def peak_here(device: str) -> float | None:
    """FLOP/s of this process's GPU; None for the CPU and for what the table does not know."""
    if device != "cuda":
        return None
    import torch

    found = device_named(torch.cuda.get_device_name())
    return found.peak if found is not None else None
