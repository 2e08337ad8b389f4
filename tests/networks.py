"""Small networks with random weights in every layer: what tests of the model, engine and assessment need."""

from __future__ import annotations

import torch
from torch import nn

from pancrafter.model.config import NetworkConfig
from pancrafter.model.network import PanCrafter
from pancrafter.model.weights import Checkpoint


def randomise(network: PanCrafter, seed: int) -> PanCrafter:
    """Give every parameter, those that start at zero too, a random value that keeps feature maps near unit size.

    3x3 kernels weigh their corners most, so that distant pixels matter more than in any trained network.
    """
    corners = torch.full((3, 3), 0.3)
    corners[::2, ::2] = 1.47
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 4:
                fan_in = parameter[0].numel() if not name.startswith("up") else parameter.shape[0]
                parameter.copy_(values * fan_in**-0.5 * (corners if parameter.shape[-1] == 3 else 1))
            elif "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * values)
            else:
                parameter.copy_(0.3 * values)
    return network.eval().requires_grad_(requires_grad=False)


def random_network(seed: int = 0, **config: object) -> PanCrafter:
    """A narrow network; keyword arguments change its configuration."""
    small: dict[str, object] = {"bands": 1, "width": 16, "depth": (1, 1, 1), "attention": "all"}
    return randomise(PanCrafter(NetworkConfig.model_validate(small | config)), seed)


def random_checkpoint(seed: int = 0, **config: object) -> Checkpoint:
    """The same as a checkpoint that was never a file."""
    network = random_network(seed, **config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Checkpoint(name="random", sha256="0" * 64, network=network, training={})


def zero_parameters(network: nn.Module) -> list[str]:
    """Names of parameters that are zero throughout."""
    return [name for name, parameter in network.named_parameters() if not parameter.any()]
