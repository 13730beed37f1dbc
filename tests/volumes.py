"""Masks and images to measure."""

import torch

MILLIMETRE = (1.0, 1.0, 1.0)


def voxels(*positions, shape=(16, 16, 12)):
    mask = torch.zeros(shape)
    for position in positions:
        mask[position] = 1
    return mask


def cube(start, stop, shape=(16, 16, 12)):
    mask = torch.zeros(shape)
    mask[start:stop, start:stop, start:stop] = 1
    return mask


def noisy_pair(shape=(20, 22, 16)):
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(shape, generator=generator) * 2 - 1
    return (target + 0.2 * torch.randn(shape, generator=generator)).clamp(-1, 1), target
