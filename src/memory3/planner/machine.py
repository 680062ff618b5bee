"""`Machine`: what a machine does per second and costs per hour. A few by name; `memory3.planner.measure` makes one of this
machine.

Rates are those a model really gets, not the data sheet's: built-in profiles say which share of it they assume.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from memory3.errors import ConfigError

__all__ = ["MACHINES", "Machine", "machine_of"]


@dataclass(frozen=True)
class Machine:
    """One machine, or one GPU with its part of the machine around it.

    Attributes:
        name: what it is called.
        flops: FLOP/s of a language model's layers over many tokens.
        memory_bandwidth: bytes/s of reading weights, one token at a time.
        disk_bandwidth: bytes/s of reading what no cache holds.
        disk_latency: seconds until a random read begins.
        layer_seconds: what a layer takes for one token beside reading its weights: the launching of its operations.
        number_bytes: of a weight.
        ram, disk: bytes there are for a bank; RAM of the host, where the index lies.
        price: per hour.
        disk_price: per TB (1e12 bytes) and month.
        priced: where the prices are from, and of when.
    """

    name: str
    flops: float
    memory_bandwidth: float
    disk_bandwidth: float
    disk_latency: float
    layer_seconds: float
    number_bytes: int
    ram: float
    disk: float
    price: float
    disk_price: float
    priced: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("name", "priced"):
                continue
            free = field.name in ("price", "disk_price", "disk_latency", "layer_seconds")
            if not math.isfinite(value) or value < 0 or (value == 0 and not free):
                least = "0 or more" if free else "more than 0"
                raise ConfigError(f"machine {self.name!r}: {field.name} is {value!r}: give a number of {least}")


#: Part of the peak matrix rate, and of the peak memory bandwidth, that inference of a language model is assumed to get on a
#: GPU.
_OF_PEAK_FLOPS, _OF_PEAK_BANDWIDTH = 0.4, 0.7
#: A transformers layer run eagerly launches about 40 kernels of 5 us each.
_EAGER_LAYER = 200e-6
#: A data-centre NVMe drive: about 6.5 GB/s and 0.1 ms (data sheet of the Samsung PM9A3, 2021).
_NVME = {"disk_bandwidth": 6.5e9, "disk_latency": 1e-4}
#: Network SSD at the list price of AWS gp3: 0.08 dollars per GB and month.
_DISK_PRICE = 80.0

#: Prices are list prices in dollars of about 2024, rounded, and change; ``--price`` gives one's own.
_PRICED = "list price of about 2024, rounded; disk: AWS gp3, list price of about 2024"
MACHINES: Mapping[str, Machine] = {
    # NVIDIA H100 SXM data sheet: 989 TFLOP/s dense bf16, 3.35 TB/s. One GPU of a shared host; Lambda asked about 3 dollars.
    "h100": Machine(
        "h100", 989e12 * _OF_PEAK_FLOPS, 3.35e12 * _OF_PEAK_BANDWIDTH, **_NVME, layer_seconds=_EAGER_LAYER, number_bytes=2,
        ram=200e9, disk=10e12, price=3.0, disk_price=_DISK_PRICE, priced=f"Lambda, {_PRICED}",
    ),
    # NVIDIA A100 80GB SXM data sheet: 312 TFLOP/s dense bf16, 2.04 TB/s; the paper's A800 computes the same. About 1.8
    # dollars.
    "a100": Machine(
        "a100", 312e12 * _OF_PEAK_FLOPS, 2.039e12 * _OF_PEAK_BANDWIDTH, **_NVME, layer_seconds=_EAGER_LAYER, number_bytes=2,
        ram=200e9, disk=10e12, price=1.8, disk_price=_DISK_PRICE, priced=f"Lambda, {_PRICED}",
    ),
    # NVIDIA Ada whitepaper, RTX 4090: 165 TFLOP/s dense fp16 with fp32 sums, 1.008 TB/s. A consumer drive; power at about 0.15
    # dollars.
    "rtx4090": Machine(
        "rtx4090", 165e12 * _OF_PEAK_FLOPS, 1.008e12 * _OF_PEAK_BANDWIDTH, disk_bandwidth=5e9, disk_latency=1e-4,
        layer_seconds=_EAGER_LAYER, number_bytes=2, ram=64e9, disk=4e12, price=0.15, disk_price=0.0,
        priced="power alone, assumed",
    ),
    # 16 cores of AMD EPYC 9004 (Zen 4: 32 fp32 FLOP per core and cycle at 3.7 GHz = 1.9 TFLOP/s, half of it assumed; about 60
    # GB/s of the socket's 460), as AWS rents c7a.8xlarge (32 vCPU) for about 1.64 dollars.
    "cpu-16": Machine(
        "cpu-16", 0.95e12, 60e9, **_NVME, layer_seconds=150e-6, number_bytes=4, ram=64e9, disk=2e12, price=1.64,
        disk_price=_DISK_PRICE, priced=f"AWS, {_PRICED}",
    ),
}  # fmt: skip


def machine_of(name: str) -> Machine:
    """The built-in profile of that name."""
    if name not in MACHINES:
        raise ConfigError(f"machine {name!r} is unknown: use one of {', '.join(MACHINES)}, or --measure for this one")
    return MACHINES[name]
