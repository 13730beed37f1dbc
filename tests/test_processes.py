import subprocess
import sys

import pytest
from tissnet_components.processes import share_out

TWO_WORKERS = """
import time
from tissnet_components.processes import share_out

for _ in share_out(time.sleep, [0, 600, 600], workers=2):
    print("begun", flush=True)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_jobs(workers):
    assert list(share_out(abs, [-3, 1, -2], workers)) == [3, 1, 2]
    assert list(share_out(abs, [], workers)) == []


def test_the_workers_of_a_killed_process_end_with_it():
    parent = subprocess.Popen([sys.executable, "-c", TWO_WORKERS], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "begun\n"
    parent.kill()
    parent.communicate(timeout=60)  # until the last of them has closed what they inherited
