"""Kill trainings at random moments and during writes, resume them, and compare their weights with those of an
undisturbed run: --help lists the options."""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from ctxseg_nb.cli import main
from ctxseg_nb.models.segmentor import MODELS
from ctxseg_nb.testing.miniatures import make_miniature, write_pair
from ctxseg_nb.training.checkpoint import read_checkpoint

EPOCHS = 12


def write_pictures(path):
    "A little CamVid of twelve training pictures"
    make_miniature('camvid', path)
    for i in range(10, 20):
        write_pair(path / 'train' / f'{i:04}.png', path / 'trainannot' / f'{i:04}.png', range(12), seed=i)


def start(words, processes, log):
    """`ctxseg` with `words`: a fork of this process, which has imported everything, or `processes` of torchrun; the
    process id"""
    if processes > 1:
        command = [
            sys.executable,
            '-m',
            'torch.distributed.run',
            '--standalone',
            f'--nproc-per-node={processes}',
            '-m',
            'ctxseg_nb.cli',
            *words,
        ]
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True).pid
    if pid := os.fork():
        return pid
    os.setsid()
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    os._exit(main(words))


def ended(pid):
    "The exit code of a process that has ended, None before"
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def kill(pid):
    os.killpg(pid, signal.SIGKILL)
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass


def run(words, processes, log):
    pid = start(words, processes, log)
    while (code := ended(pid)) is None:
        time.sleep(0.01)
    if code:
        sys.exit(f'ctxseg {" ".join(words)} ended with {code}; see {log.name}')


def disturb(words, out, processes, during_write, seconds, log):
    """Start, and kill during the first write or at a random moment of the training; whether it was killed, and
    whether during a write"""
    pid = start(words, processes, log)
    half, begun = out / '.checkpoint.pt.tmp', out / '.checkpoint.run'
    until, clear = None, False
    while (code := ended(pid)) is None:
        clear = clear or not half.exists()  # what the last kill left is removed first
        if during_write and clear and half.exists():
            break
        if not during_write:
            if until is None and begun.exists():
                until = time.monotonic() + random.uniform(0, seconds)
            if until is not None and time.monotonic() > until:
                break
            time.sleep(0.001)
    if code is not None:
        if code:
            sys.exit(f'ctxseg {" ".join(words)} ended with {code}; see {log.name}')
        return False, False
    kill(pid)
    begun.unlink(missing_ok=True)  # so that the next start is seen to begin
    return True, half.exists()


def largest_difference(a, b):
    a, b = load_file(a), load_file(b)
    return max((a[k].double() - b[k].double()).abs().max().item() if not torch.equal(a[k], b[k]) else 0.0 for k in a)


def examine(name, options, folder):
    "A row of the table for one model"
    data, log = folder / 'camvid', open(folder / f'{name}.log', 'w')

    def words(out):
        return [
            'train',
            '--data',
            'camvid',
            '--path',
            str(data),
            '--model',
            name,
            '--size',
            '32',
            '--bs',
            '4',
            '--epochs',
            str(EPOCHS),
            '--out',
            str(out),
            '--accumulate',
            str(options.accumulate),
            '--workers',
            str(options.workers),
            *(['--precision', options.precision] if options.precision else []),
        ]

    whole, out = folder / f'{name}-whole', folder / f'{name}-killed'
    begin = time.monotonic()
    run(words(whole), options.processes, log)
    seconds = (time.monotonic() - begin) / 3
    kills = writes = resumes = 0
    difference = 0.0

    def compare():
        nonlocal difference
        difference = max(difference, largest_difference(whole / 'model.safetensors', out / 'model.safetensors'))
        shutil.rmtree(out)

    while kills < options.kills:
        resumes += (out / 'checkpoint.pt').exists()
        killed, write = disturb(
            words(out) + ['--resume'], out, options.processes, writes < options.kills // 2, seconds, log
        )
        kills, writes = kills + killed, writes + write
        if not killed:
            compare()
        elif (out / 'checkpoint.pt').exists():
            read_checkpoint(out / 'checkpoint.pt')  # whole, whenever it was
    resumes += (out / 'checkpoint.pt').exists()
    run(words(out) + ['--resume'], options.processes, log)
    compare()
    shutil.rmtree(whole)
    return kills, writes, resumes, difference


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--models', help='names, as in fcn,mcibi', default=','.join(MODELS))
    parser.add_argument('--kills', type=int, default=10, help='of each model, half of them during a write')
    parser.add_argument('--processes', type=int, default=1, help='that train together')
    parser.add_argument('--accumulate', type=int, default=1, help='batches to a step')
    parser.add_argument('--precision', help='bf16 or fp16')
    parser.add_argument('--workers', type=int, default=0, help='that read pictures')
    parser.add_argument('--seed', type=int, default=0, help='of the moments')
    options = parser.parse_args()
    random.seed(options.seed)
    torch.set_num_threads(1)
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_pictures(folder / 'camvid')
        print(f'{"model":14}{"kills":>8}{"in a write":>12}{"resumes":>9}{"largest difference":>20}')
        for name in options.models.split(','):
            kills, writes, resumes, difference = examine(name, options, folder)
            print(f'{name:14}{kills:8}{writes:12}{resumes:9}{difference:20.1e}', flush=True)
            wrong += [name] * (difference != 0)
    sys.exit(f'other weights: {", ".join(wrong)}' if wrong else 0)
