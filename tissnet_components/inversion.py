"""Maps on their way back to the scan's grid: MONAI's ``Invertd``, of several at once, and only where they are not 0."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock, get_ident
from typing import Any
from unittest.mock import patch

import torch
from monai.config import KeysCollection
from monai.transforms import Invertd, InvertibleTransform, MapTransform
from torch import nn

AFFINE_GRID, GRID_SAMPLE = nn.functional.affine_grid, nn.functional.grid_sample
SLAB = 8  # planes: their grid fits a processor's cache
PATCHING = Lock()


class InvertTogetherd(MapTransform):
    """MONAI's ``Invertd`` of maps on one grid, interpolated: all in one pass, as channels of one image.

    Args:
        keys: the maps.
        transform: what is to be undone.
        orig_keys: the image that went through it.
        background: the value of a map beyond the region that was cut out, such as -1 for ``synthetic``; 0 if not named.

    Shapes:
        maps: (C, X, Y, Z), each its own C; the same comes back on the image's first grid.
    """

    def __init__(
        self,
        keys: KeysCollection,
        transform: InvertibleTransform,
        orig_keys: str,
        background: Mapping[str, float] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.invert = Invertd("together", transform, orig_keys=orig_keys, nearest_interp=False)
        self.background = dict(background or {})

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        beyond = {name: self.background.get(name, 0) for name in self.key_iterator(data)}  # where Invertd fills with 0
        together = torch.cat([data[name] - value for name, value in beyond.items()])
        with _sampling_where_not_zero():
            inverted = self.invert({**data, "together": together})["together"]
        restored = zip(beyond.items(), inverted.split([len(data[name]) for name in beyond]), strict=True)
        return {**data, **{name: one + value if value else one for (name, value), one in restored}}


@contextmanager
def _sampling_where_not_zero() -> Iterator[None]:
    """Let MONAI resample by `sample_where_not_zero`, in this thread: others, which read scans, keep PyTorch's way."""
    own = get_ident()

    def here(ours: Callable[..., Any], theirs: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: (ours if get_ident() == own else theirs)(*args, **kwargs)

    grid, sample = here(_later, AFFINE_GRID), here(sample_where_not_zero, GRID_SAMPLE)
    with PATCHING, patch.multiple(nn.functional, affine_grid=grid, grid_sample=sample):
        yield


def sample_where_not_zero(
    input: torch.Tensor, grid: tuple[torch.Tensor, Sequence[int]], mode: str, padding_mode: str, align_corners: bool
) -> torch.Tensor:
    """PyTorch's ``grid_sample`` of one volume, bit by bit, computed only where it can be other than 0, in all threads.

    What was cut to the brain is 0 around it; and of one volume, PyTorch on a CPU uses one thread. The grid is made slab
    by slab, and the result in single precision, in which MONAI returns it: touching memory costs more than sampling.

    Args:
        grid: what PyTorch's ``affine_grid`` makes one of: the matrix, (1, 3, 4), and the size of the result.

    Shapes:
        input: (1, C, X, Y, Z); returns: (1, C, X', Y', Z') float32.
    """
    theta, size = grid
    ticks = [_ticks(theta, length, align_corners) for length in size[2:]]
    box = [_extent(input[0].ne(0).any(0), axis) for axis in range(3)]
    inside = [_reaching(theta, ticks, axis, box, input.shape[2:], align_corners) for axis in range(3)]
    if padding_mode == "reflection":
        inside = [(0, length) for length in size[2:]]
    result = input.new_zeros(tuple(size), dtype=torch.float32)
    _, y, z = (slice(*ends) for ends in inside)

    def sample(start: int) -> None:
        x = slice(start, min(start + SLAB, inside[0][1]))
        places = _places(theta, ticks[0][x], ticks[1][y], ticks[2][z])
        if places.numel():
            result[:, :, x, y, z] = GRID_SAMPLE(input, places[None], mode, padding_mode, align_corners)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(sample, range(*inside[0], SLAB)))
    return result


def _ticks(theta: torch.Tensor, length: int, align_corners: bool) -> torch.Tensor:
    """Where PyTorch's ``affine_grid`` puts the voxels along an axis, between -1 and 1, before theta moves them."""
    return AFFINE_GRID(torch.eye(3, 4).to(theta)[None], [1, 1, length, 2, 2], align_corners)[0, :, 0, 0, 2]


def _places(theta: torch.Tensor, *ticks: torch.Tensor) -> torch.Tensor:
    """A part of PyTorch's ``affine_grid``, (X', Y', Z', 3), bit by bit."""
    x, y, z = torch.meshgrid(*ticks, indexing="ij")
    base = torch.stack([z, y, x, torch.ones_like(x)], -1)
    return base.reshape(1, -1, 4).bmm(theta.transpose(1, 2)).reshape(*x.shape, 3)


def _extent(mask: torch.Tensor, axis: int) -> tuple[int, int]:
    """From where to where a mask is true along an axis; of an empty one, nowhere."""
    where = mask.movedim(axis, 0).reshape(mask.shape[axis], -1).any(1).nonzero()
    return (int(where[0]), int(where[-1]) + 1) if len(where) else (0, 0)


def _reaching(
    theta: torch.Tensor,
    ticks: Sequence[torch.Tensor],
    axis: int,
    box: Sequence[tuple[int, int]],
    lengths: Sequence[int],
    align_corners: bool,
) -> tuple[int, int]:
    """From where to where planes across an axis of an affine grid come near a box of the input; their corners tell."""
    ends = [ticks[other] if other == axis else ticks[other][[0, -1]] for other in range(3)]
    corners = _places(theta, *ends).movedim(axis, 0).flatten(1, 2).flip(-1) + 1  # 0 to 2 from one end to the other
    start, stop = torch.tensor(box, device=theta.device).T
    length = torch.tensor(lengths, device=theta.device)
    places = corners * (length - 1) / 2 if align_corners else (corners * length - 1) / 2
    behind = (places.amax(1) > start - 1.5) | (start == 0)  # beyond an end, the outermost voxels may count
    before = (places.amin(1) < stop + 0.5) | (stop == length)
    return _extent((behind & before).all(1), 0)


def _later(theta: torch.Tensor, size: Sequence[int], align_corners: bool) -> tuple[torch.Tensor, Sequence[int]]:
    """In place of PyTorch's ``affine_grid``, for `sample_where_not_zero`."""
    return theta, size
