"""A run that was interrupted goes on to the same weights, or is refused with one line; training changes nothing of
fastai."""

import io
import os
import pty
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from fastai.basics import Callback, CancelFitException, set_seed
from fastai.callback.training import GradientClip
from safetensors.torch import load_file
from torch import nn

from ctxseg_nb.cli import main
from ctxseg_nb.data.dataloaders import segmentation_dls
from ctxseg_nb.data.scenes import ContextScenes
from ctxseg_nb.models.segmentor import create_model
from ctxseg_nb.testing.miniatures import make_miniature, write_pair
from ctxseg_nb.testing.ranks import run_on_ranks
from ctxseg_nb.training.async_pairwise import AsyncPairwiseUpdate
from ctxseg_nb.training.checkpoint import Checkpoint, _encode, read_checkpoint
from ctxseg_nb.training.distributed import distributed
from ctxseg_nb.training.learner import segmentation_learner

REPOSITORY = Path(__file__).parent.parent
ENVIRONMENT = os.environ | dict(PYTHONPATH=str(REPOSITORY), OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore')


# fastai stays as it is

UNCHANGED = '''
import sys
from fastai.vision.all import *
import fastai.distributed, fastai.callback.all, fastai.text.all

def attributes():
    "Every attribute of fastai's modules and classes, by name"
    found, ours = {}, ('fastai', 'fastcore', 'fastprogress')
    for name, module in list(sys.modules.items()):
        if name.split('.')[0] not in ours: continue
        for key, value in list(vars(module).items()):
            found[name, key] = value
            if isinstance(value, type) and value.__module__.split('.')[0] in ours:
                own = {k: v for k, v in vars(value).items() if k not in ('__dict__', '__weakref__', '__doc__')}
                found |= {(name, key, k): v for k, v in own.items()}
    return found

before = attributes()
import ctxseg_nb.all, ctxseg_nb.cli
after = attributes()
print('changed:', *['.'.join(k) for k, v in before.items() if k not in after or after[k] is not v])
'''


def test_import_replaces_nothing_of_fastai():
    ran = subprocess.run([sys.executable, '-c', UNCHANGED], env=ENVIRONMENT, text=True, capture_output=True)
    assert not ran.returncode, ran.stderr
    assert ran.stdout.split() == ['changed:']


# in this process: a learner that is stopped after a step, and another that goes on


class StopAt(Callback):
    order, run_valid = 100, False

    def __init__(self, step):
        self.step = step

    def after_batch(self):
        if self.train_iter == self.step:
            raise CancelFitException


def scenes(n=12, size=32, void=True):
    found = [(image, mask.copy()) for image, mask in (ContextScenes(n, size=size)[i] for i in range(n))]
    for i, (_, mask) in enumerate(found):
        mask[: void * (i % 4) * (size // 4)] = 255  # each picture with another share of void
    return found


def make(model='fcn', seed=0, bs=2, size=32, workers=0, n=12, flip=0.5, **options):
    set_seed(seed)
    dls = segmentation_dls(scenes(n, size), scenes(2, size), ContextScenes.info, bs=bs, num_workers=workers, flip=flip)
    return segmentation_learner(dls, model, metrics=[], **options)


def fit(learn, *cbs, epochs=2, lr=1e-3):
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(epochs, lr, cbs=list(cbs))
    return learn


def state(learn):
    return {k: v.clone() for k, v in learn.model.state_dict().items()}


def check_same(a, b):
    assert not [k for k in a if not torch.equal(a[k], b[k])]


KINDS = {
    'accumulated': dict(accumulate=4),
    'memory, accumulated': dict(model='mcibi', accumulate=4),
    'bf16': dict(precision='bf16'),
    'bf16, accumulated, workers': dict(precision='bf16', accumulate=2, workers=1),
    'sgd': dict(opt='sgd'),
}


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('step', [3, 6])
def test_stopped_and_resumed(kind, step, tmp_path):
    options = KINDS[kind]
    whole = state(fit(make(**options)))
    fit(make(**options), Checkpoint(tmp_path, every=1), StopAt(step))
    check_same(whole, state(fit(make(**options | dict(seed=7)), Checkpoint(tmp_path, every=1, resume=True))))


def test_momentum_of_pairwise_networks(tmp_path):
    def pairs(seed):
        set_seed(seed)
        return make(
            create_model('deepcrf', 24, 'featmap_nets', dict(trunk='tiny', nets=3, block_width=16)), seed=seed, n=4
        )

    def async_pairs():
        return AsyncPairwiseUpdate(0.01, pairs_per_step=20)

    whole = state(fit(pairs(0), async_pairs()))
    fit(pairs(0), async_pairs(), Checkpoint(tmp_path), StopAt(3))
    check_same(whole, state(fit(pairs(1), async_pairs(), Checkpoint(tmp_path, resume=True))))


class Counter(Callback):
    "Counts batches; keeps its number in the checkpoint"

    def before_fit(self):
        self.n = 0

    def after_batch(self):
        self.n += self.training

    def state_dict(self):
        return dict(n=self.n)

    def load_state_dict(self, state):
        self.n = state['n']


def test_state_of_callbacks(tmp_path):
    fit(make(), Counter(), Checkpoint(tmp_path), StopAt(7))
    late = Counter()
    fit(make(), late, Checkpoint(tmp_path, resume=True))
    assert late.n == 12
    with pytest.raises(ValueError, match='callbacks with notes: expected'):
        fit(make(), Checkpoint(tmp_path, resume=True))


@pytest.fixture(scope='module')
def stored(tmp_path_factory):
    "A checkpoint after the first of two epochs"
    folder = tmp_path_factory.mktemp('stored')
    fit(make('gap', head_lr=2), Checkpoint(folder, settings=dict(seed=0)), StopAt(6 + 1))
    return folder


DIFFERENT = {
    'seed': (dict(), dict(seed=1), 'seed: expected 1, found 0'),
    'size': (dict(size=48), {}, 'training files: expected'),
    'bs': (dict(bs=3), {}, 'training batch: expected 3, found 2'),
    'accumulate': (dict(accumulate=2), {}, 'AccumulateGradients.n: expected 2, found nothing'),
    'precision': (dict(precision='bf16'), {}, 'MixedPrecision.amp_mode: expected AMPMode.BF16, found nothing'),
    'head_lr': (dict(head_lr=3), {}, r'lr_mult: expected \[1.0, 3\], found \[1.0, 2\]'),
    'head': (dict(model='gap_local'), {}, 'model: expected gap_local, found gap'),
    'pictures': (dict(n=13), {}, 'training pictures: expected 13, found 12'),
    'flip': (dict(flip=0.4), {}, 'training transforms: expected'),
    'class weights': (dict(weights=None), {}, 'class weights: expected'),
    'optimiser': (dict(opt='sgd'), {}, 'hyper-parameters: expected'),
    'workers': (dict(workers=1), {}, 'training workers: expected 1, found 0'),
}


@pytest.mark.parametrize('what', DIFFERENT)
def test_another_run_is_refused(what, stored):
    options, settings, message = DIFFERENT[what]
    learn = make(**dict(model='gap', head_lr=2) | options)
    before = state(learn)
    with pytest.raises(ValueError, match=r'checkpoint.pt belongs to another run: ' + message):
        fit(learn, Checkpoint(stored, resume=True, settings=dict(seed=0) | settings))
    check_same(before, state(learn))


def test_rate_and_epochs_may_change(stored, tmp_path, capsys):
    (tmp_path / 'checkpoint.pt').write_bytes((stored / 'checkpoint.pt').read_bytes())
    fit(make('gap', head_lr=2), Checkpoint(tmp_path, resume=True, settings=dict(seed=0)), epochs=3)
    assert 'the run goes on after epoch 1 with epochs 3 instead of 2' in capsys.readouterr().out
    with pytest.raises(ValueError, match='epochs: expected 2, found 3'):
        fit(make('gap', head_lr=2), Checkpoint(tmp_path, resume=True, settings=dict(seed=0)))
    learn = make('gap', head_lr=2)
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, 1e-3, cbs=[Checkpoint(tmp_path / 'constant'), StopAt(7)])
    learn = make('gap', head_lr=2)
    with learn.no_bar(), learn.no_logging():
        learn.fit(2, 1e-4, cbs=Checkpoint(tmp_path / 'constant', resume=True))
    assert 'lr [0.0001, 0.0001] instead of [0.001, 0.001]' in capsys.readouterr().out
    assert learn.recorder.lrs == [1e-3] * 6 + [1e-4] * 6


# the file


def test_every_flipped_bit_is_found(tmp_path):
    layer = nn.Linear(2, 2)
    file = tmp_path / 'checkpoint.pt'
    good = bytes(_encode(dict(content(), model=layer.state_dict())))
    file.write_bytes(good)
    assert read_checkpoint(file)['epoch'] == 1
    for _ in range(300):
        at, bit = random.randrange(len(good)), 1 << random.randrange(8)
        file.write_bytes(good[:at] + bytes([good[at] ^ bit]) + good[at + 1 :])
        with pytest.raises(ValueError, match='without the right checksum'):
            read_checkpoint(file)
    for n in (0, 1, 64, len(good) // 2, len(good) - 1):
        file.write_bytes(good[:n])
        with pytest.raises(ValueError, match=f'checkpoint.pt: expected a ctxseg_nb checkpoint 3, found {n} bytes'):
            read_checkpoint(file)


def content(**changes):
    facts = {'epochs': 2, 'batches an epoch': 3}
    return (
        dict(
            format='ctxseg_nb checkpoint 3',
            facts=facts,
            epoch=1,
            used=0,
            step=3,
            pct=0.5,
            model={},
            buffers={},
            opt={},
            notes={},
            grads=[],
            scaler={},
            ranks=[],
        )
        | changes
    )


WRONG = {
    'format': (dict(format='ctxseg_nb checkpoint 1'), 'found other content'),
    'missing': (dict(opt=None), r'an entry opt \(dict\), found NoneType'),
    'epoch -1': (dict(epoch=-1), 'epoch from 0 to 2, found -1'),
    'epoch 99': (dict(epoch=99), 'epoch from 0 to 2, found 99'),
    'used': (dict(used=4), 'used from 0 to 3, found 4'),
    'step': (dict(step=7), 'step from 0 to 6, found 7'),
    'nan': (dict(model=dict(w=torch.tensor([1.0, float('nan')]))), 'nan or infinity in model.w after step 3'),
    'momentum': (dict(opt=dict(state=[dict(m=torch.tensor(float('inf')))])), 'nan or infinity in opt.state.0.m'),
}


@pytest.mark.parametrize('what', WRONG)
def test_wrong_content_is_refused(what, tmp_path):
    changes, message = WRONG[what]
    (tmp_path / 'checkpoint.pt').write_bytes(_encode(content(**changes)))
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / 'checkpoint.pt')


# the folder


def test_rest_of_a_killed_write_is_removed(tmp_path):
    rest = [tmp_path / name for name in ('.checkpoint.pt.tmp', '.checkpoint.pt.x8f2')]
    for file in rest:
        file.write_bytes(b'half')
    (tmp_path / '.other.tmp').write_bytes(b'of someone else')
    fit(make(), Checkpoint(tmp_path), epochs=1)
    assert not any(file.exists() for file in rest)
    assert (tmp_path / '.other.tmp').exists()


HOLDS = '''
import sys, time
from pathlib import Path
from ctxseg_nb.training.checkpoint import _FolderLock
lock = _FolderLock(Path(sys.argv[1]))
print('held', flush=True)
time.sleep(600)
'''


def test_one_run_in_a_folder(tmp_path):
    other = subprocess.Popen(
        [sys.executable, '-c', HOLDS, tmp_path], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == 'held\n'
        with pytest.raises(
            ValueError, match=f'another run writes its checkpoints here, process {other.pid} on .* since 20'
        ):
            fit(make(), Checkpoint(tmp_path), epochs=1)
        assert not (tmp_path / 'checkpoint.pt').exists()
    finally:
        other.kill()
        other.wait()
    fit(make(), Checkpoint(tmp_path), epochs=1)  # a killed run holds nothing
    with pytest.raises(ValueError, match='boom'):
        fit(make(), Checkpoint(tmp_path), Boom(), epochs=1)
    assert not (tmp_path / '.checkpoint.run').exists()  # nor does one that ended with an error


class Boom(Callback):
    def before_train(self):
        raise ValueError('boom')


# several batches to a step


class Fixed(Callback):
    "Statistics and dropout of evaluation, which do not depend on the batch"

    def before_batch(self):
        for m in self.model.modules():
            if isinstance(m, (nn.modules.batchnorm._BatchNorm, nn.Dropout2d)):
                m.eval()


MODELS = {'fcn': {}, 'mcibi': dict(init='first_mean'), 'encnet': {}, 'ocrnet': {}}


@pytest.mark.parametrize('model', MODELS)
def test_accumulated_batches_are_one_batch(model):
    def steps(bs, accumulate, n=12):
        learn = make(
            model,
            bs=bs,
            accumulate=accumulate,
            opt='sgd',
            flip=0.0,
            n=n,
            cbs=[Fixed(), GradientClip(0.5)],
            **MODELS[model],
        )
        learn.dls.train.shuffle = False
        with learn.no_bar(), learn.no_logging():
            learn.fit(2, 1e-2)
        return learn

    one, two = steps(4, 1), steps(2, 2)
    for k, v in one.model.state_dict().items():
        torch.testing.assert_close(two.model.state_dict()[k], v, atol=1e-5, rtol=1e-4)
    assert len(one.recorder.losses) == 6 and len(two.recorder.losses) == 12


def test_last_group_of_an_epoch_takes_a_step():
    class Steps(Callback):
        n = 0

        def after_step(self):
            self.n += 1

    counter = Steps()
    fit(make(accumulate=4), counter, epochs=3)  # six batches: groups of 4 and of 2
    assert counter.n == 6


@pytest.mark.parametrize('accumulate', [7, 1000])
def test_more_batches_to_a_step_than_there_are(accumulate):
    with pytest.raises(ValueError, match=f'accumulate: expected at most the 6 batches of an epoch, found {accumulate}'):
        fit(make(accumulate=accumulate))


@pytest.mark.parametrize('lr', [0.0, 1e-3])
def test_memory_is_told_of_steps(lr):
    learn = make('mcibi', init='first_mean')
    memory = learn.model.head.prototypes.memory
    sums = []

    class Note(Callback):
        run_valid = False

        def after_batch(self):
            sums.append(memory.sums[1, :, -1].sum().item())

    with learn.no_bar(), learn.no_logging():
        learn.fit(1, lr, cbs=Note())
    labelled = [(y != 255).sum().item() for x, y in make('mcibi').dls.train]  # in the same order
    assert len(sums) == 6 and max(sums) <= max(2 * 32 * 32, *labelled)  # one batch each, whatever the weights did


# loss and weights that are no numbers


def test_infinite_loss_stops_the_training(tmp_path):
    with pytest.raises(ValueError, match=r'the loss of step \d+ is (nan|inf)'):
        fit(make(), Checkpoint(tmp_path), lr=1e12)
    assert not (tmp_path / 'checkpoint.pt').exists()
    make().lr_find(num_it=8, show_plot=False)  # which looks for the rate where it explodes


def test_infinite_weights_are_not_written(tmp_path):
    class Break(Callback):
        order, run_valid = 70, False

        def after_batch(self):
            if self.train_iter == 3:
                next(self.model.parameters()).data.fill_(float('nan'))

    with pytest.raises(
        ValueError, match='is not written: expected finite numbers, found nan or infinity in model.backbone'
    ):
        fit(make(), Break(), Checkpoint(tmp_path, every=1))
    assert read_checkpoint(tmp_path / 'checkpoint.pt')['step'] == 2
    with pytest.raises(ValueError, match='after step 6, whose weights are not finite|loss of step'):
        fit(make(), Break())


# the command


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    path = make_miniature('camvid', tmp_path_factory.mktemp('data') / 'camvid')
    for i in range(10, 30):
        write_pair(path / 'train' / f'{i:04}.png', path / 'trainannot' / f'{i:04}.png', range(12), seed=i)
    return path


def words(pictures, out, *more):
    return [
        'train',
        '--data',
        'camvid',
        '--path',
        str(pictures),
        '--size',
        '32',
        '--bs',
        '4',
        '--epochs',
        '30',
        '--out',
        str(out),
        *more,
    ]


@pytest.fixture(scope='module')
def undisturbed(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp('undisturbed')
    with redirect_stdout(io.StringIO()):
        assert main(words(pictures, out)) == 0
    return load_file(out / 'model.safetensors')


def begin(pictures, out, *more, **options):
    "The command in a process of its own, once its first checkpoint is there"

    def hear():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a shell's background jobs ignore

    process = subprocess.Popen(
        [sys.executable, '-m', 'ctxseg_nb.cli', *words(pictures, out, *more)],
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=hear,
        **options,
    )
    while not (out / 'checkpoint.pt').exists() and process.poll() is None:
        time.sleep(0.005)
    return process


def in_terminal(command):
    "Run a command in a pseudo-terminal; its exit code and what it wrote"
    mine, theirs = pty.openpty()
    process = subprocess.Popen(command, env=ENVIRONMENT, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True)
    os.close(theirs)
    text = b''
    while True:
        try:
            part = os.read(mine, 65536)
        except OSError:
            break  # the other end is closed
        if not part:
            break
        text += part
    os.close(mine)
    return process.wait(), text.decode()


def test_killed_command_resumes_in_a_terminal(pictures, undisturbed, tmp_path):
    process = begin(pictures, tmp_path)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / 'model.safetensors').exists()
    code, text = in_terminal([sys.executable, '-m', 'ctxseg_nb.cli', *words(pictures, tmp_path, '--resume')])
    assert code == 0, text
    check_same(undisturbed, load_file(tmp_path / 'model.safetensors'))


@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_stops_with_one_line(number, code, pictures, undisturbed, tmp_path):
    process = begin(pictures, tmp_path)
    process.send_signal(number)
    text = process.communicate()[1]
    assert process.returncode == code, text
    assert len(text.splitlines()) == 1 and f'stopped by {number.name} after step' in text
    assert read_checkpoint(tmp_path / 'checkpoint.pt')['step'] < 30 * 5
    with redirect_stdout(io.StringIO()):
        assert main(words(pictures, tmp_path, '--resume')) == 0  # not in a terminal
    check_same(undisturbed, load_file(tmp_path / 'model.safetensors'))


def test_errors_of_the_command_are_one_line(pictures, tmp_path, capsys):
    assert main(words(pictures, tmp_path, '--lr', '1e12')) == 2
    found = capsys.readouterr().err.splitlines()
    assert len(found) == 1 and re.match(r'ctxseg: the training ends: the loss of step \d+ is', found[0])
    assert not (tmp_path / 'model.safetensors').exists()
    assert main(words(pictures, tmp_path, '--accumulate', '1000')) == 2
    assert capsys.readouterr().err.startswith(
        'ctxseg: accumulate: expected at most the 5 batches of an epoch, found 1000'
    )


# a notebook

CELLS = '''
from fastai.basics import *
from ctxseg_nb.data.dataloaders import scenes_dls
from ctxseg_nb.training.checkpoint import Checkpoint
from ctxseg_nb.training.learner import segmentation_learner
class Stop(Callback):
    def after_batch(self):
        if self.train_iter == 5: raise CancelFitException
def learner(): return segmentation_learner(scenes_dls(8, 4, 32, 2), metrics=[])
---
learner().fit_one_cycle(3, cbs=[Checkpoint('run'), Stop()])
---
learn = learner()
learn.fit_one_cycle(3, cbs=Checkpoint('run', resume=True))
print('epochs', len(learn.recorder.values))
'''


def test_resumes_in_a_notebook(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip('nbclient'), pytest.importorskip('nbformat')
    for k, v in ENVIRONMENT.items():
        monkeypatch.setenv(k, v)
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in CELLS.split('---\n')])
    nbclient.NotebookClient(book, timeout=300, resources=dict(metadata=dict(path=str(tmp_path)))).execute()
    assert 'epochs 3' in str(book.cells[-1].outputs)


# several processes


def on_two(rank, folder, resume, stop):
    learn = make('mcibi', bs=4, seed=rank if resume else 0)
    with distributed(learn):
        fit(learn, Checkpoint(folder, every=2, resume=resume), *[StopAt(4)] * stop, epochs=3)
    return state(learn)


def test_two_processes(tmp_path):
    whole = run_on_ranks(on_two, 2, tmp_path / 'whole', False, False)
    run_on_ranks(on_two, 2, tmp_path / 'run', False, True)
    ranks = read_checkpoint(tmp_path / 'run' / 'checkpoint.pt')['ranks']
    assert len(ranks) == 2 and not torch.equal(ranks[0]['now']['torch'], ranks[1]['now']['torch'])
    (tmp_path / 'alone').mkdir()
    (tmp_path / 'alone' / 'checkpoint.pt').write_bytes((tmp_path / 'run' / 'checkpoint.pt').read_bytes())
    again = run_on_ranks(on_two, 2, tmp_path / 'run', True, False)
    for a, b in zip(whole, again):
        check_same(a, b)
    with redirect_stdout(io.StringIO()) as said:
        fit(make('mcibi', bs=4), Checkpoint(tmp_path / 'alone', every=2, resume=True), epochs=3)
    assert 'with processes 1 instead of 2' in said.getvalue()
