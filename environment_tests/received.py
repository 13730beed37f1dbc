"""A filter of NVFLARE's server that keeps the messages that pass it; `test_nvflare.py` puts it into a job."""

import json
import time
from pathlib import Path

import numpy as np
import torch
from nvflare.apis.filter import Filter
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable


def leaves(value: object, place: tuple[str, ...] = ()) -> dict[str, object]:
    """Everything in nested dicts and lists by its place; arrays become lists, and what JSON does not know, a text."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for name, part in items for key, leaf in leaves(part, (*place, str(name))).items()}
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        value = value.tolist()
    return {"/".join(place): value}


class Keep(Filter):
    """Writes each message to a file of ``folder``, named after the time."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        (Path(self.folder) / f"{time.time_ns()}.json").write_text(json.dumps(leaves(shareable), default=repr))
        return shareable
