"""Starting fast: what MONAI and Ignite import in advance comes when it is used, and then it is the real thing."""

import subprocess
import sys
from collections import OrderedDict

from tissnet_components.start import Later

LATER = {"matplotlib", "pandas", "skimage", "sklearn", "scipy.signal", "itk", "tensorboard", "jsonschema", "sympy"}

PROGRAM = """
import sys
from tissnet_components.start import import_monai

import_monai()
import monai.bundle, monai.handlers, monai.networks.nets
print(*LATER & set(sys.modules))

import torch
from ignite.handlers.checkpoint import ZeroRedundancyOptimizer
from monai.transforms import RemoveSmallObjects
from monai.utils.jupyter_utils import plt

spots = torch.zeros(1, 9, 9, 9)
spots[0, 0, 0, 0] = spots[0, 4:, 4:, 4:] = 1
print(int(RemoveSmallObjects(8)(spots).sum()), plt.figure().number, isinstance(spots, ZeroRedundancyOptimizer))
print(monai.networks.nets.SegResNet.__name__, monai.utils.module.__name__, "sympy" in sys.modules)
"""


def test_what_stands_for_an_import_makes_it_once_and_when_it_is_used():
    made = []

    def load():
        made.append("made")
        return OrderedDict

    later = Later(load)
    assert not made
    assert later(a=1) == OrderedDict(a=1)
    assert isinstance(OrderedDict(), later) and not isinstance({}, later)
    assert later.fromkeys("ab") == OrderedDict(a=None, b=None)

    class Derived(later):
        pass

    assert Derived.__mro__[1] is OrderedDict
    assert made == ["made"]


def test_monai_is_there_before_what_it_imports_in_advance_and_that_comes_when_it_is_used():
    run = [sys.executable, "-W", "ignore", "-c", f"LATER = {LATER}{PROGRAM}"]
    told = subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()
    assert told == ["", "125 1 False", "SegResNet monai.utils.module True"]
