"A run that was interrupted goes on to the same weights, or is refused with one line; training changes nothing of fastai."
import os, subprocess, sys
from pathlib import Path
import pytest

REPOSITORY = Path(__file__).parent.parent

UNCHANGED = '''
import sys, types
from fastai.vision.all import *
import fastai.distributed, fastai.callback.all, fastai.text.all

def attributes():
    "Every attribute of fastai's modules and classes, by name"
    found = {}
    for name, module in list(sys.modules.items()):
        if name.split('.')[0] not in ('fastai', 'fastcore', 'fastprogress'): continue
        for key, value in list(vars(module).items()):
            found[name, key] = value
            if isinstance(value, type) and value.__module__.split('.')[0] in ('fastai', 'fastcore', 'fastprogress'):
                for attribute, part in vars(value).items():
                    if attribute not in ('__dict__', '__weakref__', '__doc__'): found[name, key, attribute] = part
    return found

before = attributes()
import ctxseg_nb.all, ctxseg_nb.cli
after = attributes()
changed = [k for k, v in before.items() if k not in after or after[k] is not v]
print('changed:', *['.'.join(k) for k in changed])
'''


def test_import_replaces_nothing_of_fastai():
    environment = os.environ | dict(PYTHONPATH=str(REPOSITORY), OMP_NUM_THREADS='1')
    ran = subprocess.run([sys.executable, '-W', 'ignore', '-c', UNCHANGED], env=environment, text=True, capture_output=True)
    assert not ran.returncode, ran.stderr
    assert not ran.stdout.split()[1:]
