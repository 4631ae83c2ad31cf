"The tools that `make test` is made of."

import json
import subprocess
import sys

from conftest import REPOSITORY

RUN = '''
import sys, test_notebooks as tool
from pathlib import Path
tool.CPU_LIMIT, tool.WALL_LIMIT = 8, 40
print(*[path.stem for path in tool.test(2, [Path(p) for p in sys.argv[1:]])])
'''
NOTEBOOKS = dict(  # name → what its one cell does
    passes='1 + 1',
    raises='1/0',
    waits='import time; time.sleep(12)',
    computes='def compute():\n    while True: pass\ncompute()',
    hangs='import threading\ndef hang(): threading.Event().wait()\nhang()',
)


def notebook(path, source):
    cell = dict(cell_type='code', execution_count=None, id='00000000', metadata={}, outputs=[], source=source)
    kernel = dict(display_name='python3', language='python', name='python3')
    path.write_text(json.dumps(dict(cells=[cell], metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)))
    return path


def test_notebooks_that_fail_and_that_take_too_long(tmp_path):
    """The limit is of processor time: what waits for longer passes, what computes for longer or hangs is ended and
    says where it was"""
    files = [notebook(tmp_path / f'{name}.ipynb', source) for name, source in NOTEBOOKS.items()]
    found = subprocess.run(
        [sys.executable, '-c', RUN, *map(str, files)],
        cwd=REPOSITORY,
        env=dict(PYTHONPATH=str(REPOSITORY / 'tools'), PATH=''),
        text=True,
        capture_output=True,
        timeout=600,
    )
    assert sorted(found.stdout.split('\n')[-2].split()) == ['computes', 'hangs', 'raises'], found.stdout + found.stderr
    for words in ('ZeroDivisionError', 'in compute', 'in hang', f'passed {tmp_path}/waits.ipynb'):
        assert words in found.stdout
