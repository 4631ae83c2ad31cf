"""What the tests share: one thread, a fixed seed, the command line as a person starts it, and real data where it is
there."""

import os
import random
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use('agg')
torch.set_num_threads(1)
REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def seeded():
    "Every test starts from the same random numbers, whatever ran before it"
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def ctxseg(tmp_path):
    """`ctxseg(*words)`: the command in a process of its own, in an empty folder; gives the finished process with its
    text"""

    def run(*words, timeout=300, **options):
        environment = os.environ | dict(PYTHONPATH=str(REPOSITORY), OMP_NUM_THREADS='1')
        return subprocess.run(
            [sys.executable, '-m', 'ctxseg_nb.cli', *map(str, words)],
            cwd=options.pop('cwd', tmp_path),
            env=environment | options.pop('env', {}),
            timeout=timeout,
            text=True,
            capture_output=True,
            **options,
        )

    return run


@pytest.fixture
def real_data():
    "`real_data(name)`: the path of real data, or the test is skipped"

    def find(name):
        path = Path(os.environ.get('CTXSEG_DATA', REPOSITORY.parent / 'shared' / 'data')) / name
        if not path.exists():
            pytest.skip(f'no {name} beside the project or in $CTXSEG_DATA')
        return path

    return find
