"""One training or evaluation in several processes, such as one for each GPU; `torchrun` starts them.

Losses and steps are those of one process that sees all their batches at once.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import ignite.distributed as idist
import torch
import torch.distributed as dist
from monai.data import partition_dataset
from tissnet_components.errors import UserError
from torch import nn
from torch.distributed.nn.functional import all_gather


def start(device: torch.device) -> None:
    """Connect this process to the others, as `torchrun` tells it; once."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def share(cases: Sequence[Any], even: bool) -> list[Any]:
    """This process's part of the cases.

    Args:
        even: every process gets as many, so that some cases are seen twice. For training, where processes wait for
            each other; otherwise every case is in one part.

    Raises:
        ValueError: fewer cases than processes.
    """
    processes = idist.get_world_size()
    if len(cases) < processes:
        raise UserError(f"{processes} processes cannot share {len(cases)} cases; give --nproc_per_node {len(cases)}")
    return partition_dataset(cases, num_partitions=processes, even_divisible=even)[idist.get_rank()]


def synchronise_batch_norm(players: Sequence[Any], device: torch.device) -> None:
    """Let every batch norm of the players see the batches of all processes; only on a GPU, PyTorch cannot on a CPU."""
    for player in players:
        if player is not None and device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(player.module)


def all_samples(tensor: torch.Tensor) -> torch.Tensor:
    """The samples of all processes; gradients flow back to each one's own. A collective, forward and backward.

    Shapes:
        tensor: (B, ...), each process its own B, perhaps 0.
        returns: (samples of all processes, ...).
    """
    if idist.get_world_size() == 1:
        return tensor
    counts: Any = idist.all_gather(len(tensor))
    filled = torch.cat([tensor, tensor.new_zeros(max(counts) - len(tensor), *tensor.shape[1:])])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # what shall replace it is private, and newer than our oldest
        parts = all_gather(filled)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def mean_over_processes(losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each loss as one process with all the batches would see it; what a process lacks counts 0, see ``Batch.weight``.

    Shapes:
        losses, returns: scalars.
    """
    if idist.get_world_size() == 1:
        return losses
    everyone: Any = idist.all_gather({name: loss.item() for name, loss in losses.items()})
    names = dict.fromkeys(name for part in everyone for name in part)
    return {name: torch.tensor(sum(part.get(name, 0.0) for part in everyone) / len(everyone)) for name in names}


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Average each gradient over all processes; a parameter that no process's batch reached keeps none.

    Not by DistributedDataParallel, which waits for the same parameters of every process: here two players share one
    cascade, and the terms in a tumor's box come and go with the patches.
    """
    if idist.get_world_size() == 1:
        return
    reached = parameters[0].new_tensor([parameter.grad is not None for parameter in parameters])
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    summed: Any = idist.all_reduce(torch.cat([reached, *(gradient.reshape(-1) for gradient in gradients)]))
    parts = (summed / idist.get_world_size()).split([len(parameters), *(p.numel() for p in parameters)])
    for parameter, used, part in zip(parameters, parts[0].tolist(), parts[1:], strict=True):
        parameter.grad = part.view_as(parameter) if used else None
