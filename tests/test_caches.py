"""What is kept for later: features, results, predictions and scenes that are those of these files, and are written
whole and once."""

import copy
import os
import pickle
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ctxseg_nb.core import IGNORE, DatasetInfo
from ctxseg_nb.data.dataloaders import scenes_dls
from ctxseg_nb.data.dataset import DATASETS, open_dataset
from ctxseg_nb.evaluation.sliding_window import Predictor
from ctxseg_nb.evaluation.tta import cached_predictions
from ctxseg_nb.experiments import frozen_features as frozen
from ctxseg_nb.experiments.frozen_features import frozen_features
from ctxseg_nb.experiments.runner import read_results
from ctxseg_nb.models.backbones import create_backbone
from ctxseg_nb.models.segmentor import create_model
from ctxseg_nb.testing.miniatures import MINIATURES, make_miniature, write_picture

SIZE = 24, 32


def trunk(stride=4):
    torch.manual_seed(0)
    return create_backbone('tiny', width=4, output_stride=stride)


@pytest.fixture
def lip(tmp_path):
    return open_dataset('lip', make_miniature('lip', tmp_path / 'lip'))


# ---- frozen features


def test_features_know_the_options_of_the_data_set(tmp_path):
    path, folder = make_miniature('coco_objects', tmp_path / 'coco'), tmp_path / 'features'
    plain, strict = (open_dataset('coco_objects', path, min_region=n) for n in (0, 600))
    net = trunk()
    masks = [frozen_features(ds, 'train', SIZE, net, folder)[1] for ds in (plain, strict, plain)]
    for ds, found in zip((plain, strict, plain), masks):
        assert (found == np.stack([frozen._read_mask(ds, m, SIZE) for _, m in ds.split('train')])).all()
    assert (masks[1] == IGNORE).mean() > 0.5 and (masks[0] != IGNORE).all()


@pytest.mark.parametrize('name', sorted(set(DATASETS) & set(MINIATURES)))
def test_every_option_of_every_data_set_is_known(name, tmp_path):
    "`options` has what the class was told, with the defaults of the rest"
    cls, path = DATASETS[name], make_miniature(name, tmp_path / name)
    assert set(cls(path).options) == set(cls.__init__.__annotations__) - {'path', 'return'}
    assert copy.copy(cls(path)).options == pickle.loads(pickle.dumps(cls(path))).options == cls(path).options


def test_features_know_the_stride(lip, tmp_path):
    fine, coarse = trunk(2), trunk(4)
    coarse.load_state_dict(fine.state_dict())
    shapes = [frozen_features(lip, 'train', SIZE, net, tmp_path / 'f')[0].shape[-2:] for net in (fine, coarse, fine)]
    assert shapes == [(12, 16), (6, 8), (12, 16)]
    assert len(list((tmp_path / 'f').glob('*.json'))) == 2


@pytest.mark.parametrize('which', [0, 1], ids=['picture', 'mask'])
def test_features_know_the_files(lip, which, tmp_path):
    net, pair = trunk(), lip.split('train')[1]
    before = [np.array(a) for a in frozen_features(lip, 'train', SIZE, net, tmp_path / 'f')]
    if which == 0:
        write_picture(pair[0], (64, 48), seed=99)
    else:
        Image.fromarray(lip.read_mask(pair[1])[::-1]).save(pair[1])
    after = frozen_features(lip, 'train', SIZE, net, tmp_path / 'f')
    assert (before[which][1] != after[which][1]).any() and (before[which][0] == after[which][0]).all()


class Counting(nn.Module):
    "A backbone that counts its calls, each of which takes a moment"

    def __init__(self):
        super().__init__()
        self.net, self.calls = trunk(), 0
        self.channels, self.strides = self.net.channels, self.net.strides

    def forward(self, x):
        self.calls += 1
        time.sleep(0.1)
        return self.net(x)


def test_features_are_computed_once_by_two_writers(lip, tmp_path):
    nets, found = [Counting(), Counting()], {}

    def work(i):
        found[i] = frozen_features(lip, 'train', SIZE, nets[i], tmp_path / 'f')

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(net.calls for net in nets) == [1, 2]  # two pictures; the first one again to compare
    assert (found[0][0] == found[1][0]).all()
    assert not [f for f in (tmp_path / 'f').iterdir() if f.suffix not in ('.npy', '.json', '.lock')]


def test_a_second_writer_leaves_a_reader_its_features(lip, tmp_path):
    net = trunk()
    maps, _ = frozen_features(lip, 'train', SIZE, net, tmp_path / 'f')
    before = np.array(maps)
    next((tmp_path / 'f').glob('*.json')).unlink()  # so that the file is written anew
    net.forward = lambda x: [m + 1 for m in type(net).forward(net, x)]
    again, _ = frozen_features(lip, 'train', SIZE, net, tmp_path / 'f')
    assert (np.array(maps) == before).all() and np.allclose(again, before + 1, atol=0.01)


@pytest.mark.parametrize('which', ['.npy', '-masks.npy', '.json'])
@pytest.mark.parametrize('how', ['cut', 'bit'])
def test_damaged_features_are_named(lip, which, how, tmp_path):
    net = trunk()
    frozen_features(lip, 'train', SIZE, net, tmp_path / 'f')
    (file,) = (f for f in (tmp_path / 'f').glob(f'*{which}') if which != '.npy' or 'masks' not in f.name)
    data = file.read_bytes()
    data = data[: len(data) // 2] if how == 'cut' else data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
    file.write_bytes(data)
    with pytest.raises(ValueError, match='damaged.*delete lip20-train'):
        frozen_features(lip, 'train', SIZE, net, tmp_path / 'f')


# ---- predictions of several views


def six(net, **options):
    return Predictor(net, (1.2, 1.0, 0.8), flip=True, **options)


def pictures(n=2, K=3):
    return [(torch.rand(3, 8, 12), torch.randint(0, K, (8, 12))) for _ in range(n)]


def test_predictions_know_the_labels_in_the_mirror(tmp_path):
    net, pairs = create_model('fcn', 3, backbone_options=dict(width=4)).eval(), pictures()
    plain = cached_predictions(six(net), pairs, tmp_path / 'c')[0][0]
    with pytest.raises(ValueError, match='000000.safetensors: expected predictions with'):
        cached_predictions(six(net, flip_labels=[0, 2, 1]), pairs, tmp_path / 'c')
    turned = cached_predictions(six(net, flip_labels=[0, 2, 1]), pairs, tmp_path / 'd')[0][0]
    assert torch.equal(turned[0], plain[0]) and not torch.equal(turned[1], plain[1])  # the picture; its mirror image


def test_predictions_know_the_structure(tmp_path):
    "Networks of other strides have the same weights, and no name of their options where they are not made by name"
    pairs = pictures()
    nets = [nn.Conv2d(3, 3, 3, padding=d, dilation=d) for d in (1, 2)]
    nets[1].load_state_dict(nets[0].state_dict())
    cached_predictions(six(nets[0]), pairs, tmp_path / 'c')
    with pytest.raises(ValueError, match='expected predictions with model'):
        cached_predictions(six(nets[1]), pairs, tmp_path / 'c')


def test_predictions_are_computed_once_by_two_writers(tmp_path):
    class Slow(nn.Conv2d):
        calls = 0

        def forward(self, x):
            Slow.calls += 1
            time.sleep(0.02)
            return super().forward(x)

    net, pairs = Slow(3, 3, 1), pictures(3)
    threads = [
        threading.Thread(target=cached_predictions, args=(Predictor(net), pairs, tmp_path / 'c')) for _ in range(2)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert Slow.calls == 3


# ---- results

RUN = '''
import sys, time
import numpy as np
from ctxseg_nb.experiments.runner import Experiment, register_experiment, run_experiment
def throw(config):
    time.sleep(.3)
    return dict(miou=np.random.default_rng().random()), np.ones((4, 2, 3), int)
register_experiment(Experiment('twice', 'the same by two', throw, dict(fcn={}, gap={})))
print('ready', flush=True)
for folders in sys.stdin: print(len(run_experiment('twice', 2, *folders.split())['runs']), flush=True)
'''


def test_two_processes_make_each_run_once(tmp_path):
    "with the same folder of counts or their own"
    environment = os.environ | dict(PYTHONPATH=os.pathsep.join(sys.path))
    pair = [
        subprocess.Popen(
            [sys.executable, '-c', RUN], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for p in pair:
        assert p.stdout.readline() == 'ready\n'  # both begin when both have imported everything
    for out, works in dict(same=('w', 'w'), own=('a', 'b')).items():
        for p, work in zip(pair, works):
            p.stdin.write(f'{tmp_path / out} {tmp_path / work}\n')
            p.stdin.flush()
        told = [runs_told(p) for p in pair]
        runs = read_results(tmp_path / out / 'twice.json')['runs']
        assert sorted((r['variant'], r['seed']) for r in runs) == [('fcn', 0), ('fcn', 1), ('gap', 0), ('gap', 1)]
        assert sum(told) == 4  # lines about a finished run
    for p in pair:
        p.communicate(timeout=60)


def runs_told(process):
    "How many finished runs a process told of, up to its number of runs"
    told = 0
    while not (line := process.stdout.readline()).strip().isdecimal():
        assert line, 'the process ended'
        told += 1
    assert line == '4\n'
    return told


# ---- scenes and cards


def test_scenes_cannot_be_changed_for_the_next_loaders():
    def fresh():
        return scenes_dls(8, 4, size=32, bs=4, shuffle=False, flip=0, device='cpu')

    dls = fresh()
    before = [t.clone() for t in dls.train.one_batch()]
    for array in dls.train_ds.items[0]:
        with pytest.raises(ValueError, match='read-only'):
            array[:] = 0
    picture, mask = dls.train_ds[0]  # opened anew for everyone
    for tensor in dls.train.one_batch():
        tensor.zero_()
    picture.putpixel((0, 0), (1, 2, 3))
    mask.putpixel((0, 0), 7)
    for loaders in (dls, fresh()):
        assert all(torch.equal(a, b) for a, b in zip(before, loaders.train.one_batch()))


@pytest.mark.parametrize('name', sorted(DATASETS))
def test_what_all_data_sets_of_a_class_share_is_read_only(name):
    for key in ('label_map', 'info'):
        shared = getattr(DATASETS[name], key, None)
        array = shared.palette if isinstance(shared, DatasetInfo) else shared
        assert array is None or not array.flags.writeable


def test_infos_are_equal_by_content():
    make = lambda **changed: DatasetInfo(
        **(dict(name='n', class_names=('a', 'b'), palette=np.eye(2, 3), background=0, groups=dict(g=(1,))) | changed)
    )
    card = make()
    assert (
        card == make() == make(class_names=['a', 'b'], groups=dict(g=[1]))
        and hash(card) == hash(make())
        and len({card, make()}) == 1
    )
    for changed in (
        dict(name='m'),
        dict(class_names=('a', 'c')),
        dict(palette=np.ones((2, 3))),
        dict(background=None),
        dict(groups={}),
    ):
        assert card != make(**changed)
    assert card != 'n' and replace(card, name='m').palette.tolist() == card.palette.tolist()
    assert pickle.loads(pickle.dumps(card)) == copy.deepcopy(card) == card
    with pytest.raises(ValueError, match='read-only'):
        card.palette[0] = 9


def test_infos_of_data_sets_are_equal(tmp_path):
    for name in set(DATASETS) & set(MINIATURES):
        path = make_miniature(name, tmp_path / name)
        assert open_dataset(name, path).info == open_dataset(name, path).info
