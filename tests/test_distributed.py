"Several processes train what one process trains: batches, schedules, weights, scores; failures end all of them."

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from fastai.basics import AvgMetric, Callback, DataLoader, set_seed

from ctxseg_nb.core import IGNORE, place_in_batch
from ctxseg_nb.data.dataloaders import segmentation_dls
from ctxseg_nb.data.scenes import ContextScenes
from ctxseg_nb.models.deepcrf import PairwiseNet, _all_pairs_loss, async_pairwise_loss, batch_range_box_edges, deepcrf
from ctxseg_nb.testing.miniatures import make_miniature
from ctxseg_nb.testing.ranks import run_on_ranks
from ctxseg_nb.training.async_pairwise import AsyncPairwiseUpdate
from ctxseg_nb.training.distributed import ShardedDL, distributed
from ctxseg_nb.training.learner import segmentation_learner

# ---- which rank reads which picture


@pytest.mark.parametrize('n_ranks', [2, 3])
@pytest.mark.parametrize(
    'n, bs, drop_last', [(37, 4, True), (22, 4, True), (23, 4, False), (7, 3, True), (16, 16, True), (5, 5, False)]
)
def test_training_batches_are_those_of_one_process(n, bs, drop_last, n_ranks):
    dl = DataLoader(range(n), bs=bs, drop_last=drop_last)
    ranks = [ShardedDL(dl, rank, n_ranks, training=True) for rank in range(n_ranks)]
    assert [len(r) for r in ranks] == [len(dl)] * n_ranks
    together = [sum(shares, []) for shares in zip(*[r.batches(range(n)) for r in ranks])]
    assert together == [batch.tolist() for batch in dl]
    assert all(share for r in ranks for share in r.batches(range(n)))


@pytest.mark.parametrize('n_ranks', [2, 3, 4])
@pytest.mark.parametrize('n, bs', [(1, 1), (7, 1), (7, 4), (22, 16), (8, 3)])
def test_validation_reads_every_picture_once(n, bs, n_ranks):
    dl = DataLoader(range(n), bs=bs)
    ranks = [ShardedDL(dl, rank, n_ranks, training=False) for rank in range(n_ranks)]
    read = [[batch.tolist() for batch in r] for r in ranks]
    assert sorted(i for batches in read for batch in batches for i in batch) == list(range(n))
    assert [len(r) for r in ranks] == [len(batches) for batches in read]
    numbers = [sum(map(len, batches)) for batches in read]
    assert max(numbers) - min(numbers) <= -(-bs // n_ranks)


def test_workers_read_the_same():
    for training in (True, False):
        read = [
            [
                batch.tolist()
                for batch in ShardedDL(DataLoader(range(23), bs=5, num_workers=w, drop_last=training), 1, 2, training)
            ]
            for w in (0, 2)
        ]
        assert read[0] == read[1] and read[0]


@pytest.mark.parametrize('n, bs, drop_last', [(4, 1, True), (5, 4, False)])
def test_fewer_pictures_than_ranks_in_a_batch(n, bs, drop_last):
    with pytest.raises(ValueError, match='a batch of 1 for 2 processes: expected one picture or more for each'):
        len(ShardedDL(DataLoader(range(n), bs=bs, drop_last=drop_last), 0, 2, training=True))


def test_loaders_that_cannot_be_shared_out():
    with pytest.raises(ValueError, match='expected a DataLoader of fastai, found torch.utils.data'):
        ShardedDL(torch.utils.data.DataLoader(range(4)), 0, 2, training=True)


# ---- the same weights


def scenes(n, seed):
    "Scenes whose masks have void in different amounts"
    drawn = ContextScenes(n, size=32, seed=seed)
    pairs = [tuple(map(np.array, drawn[i])) for i in range(n)]
    for i, (_, mask) in enumerate(pairs):
        mask[: 3 * (i % 8)] = IGNORE
    return pairs


class Double(Callback):
    def before_batch(self):
        self.learn.xb = tuple(x.double() for x in self.xb)

    def after_loss(self):
        self.learn.loss = self.loss.float()  # for fastai's recorder


class Rates(Callback):
    def before_fit(self):
        self.rates = []

    def after_step(self):
        self.rates.append(self.opt.hypers[-1]['lr'])


def pixel_error(pred, target):
    return (pred.argmax(1) != target).float().mean((1, 2)).mean()


OPTIONS = dict(
    mcibi=dict(init='first_mean'), deepcrf=dict(width=16), encnet={}, fcn={}, cfnet={}, guided=dict(fc_dropout=0.0)
)


def learner(name, dtype=torch.float64, n=22, n_valid=5, bs=4, workers=0, **options):
    set_seed(0, reproducible=True)
    dls = segmentation_dls(scenes(n, 0), scenes(n_valid, 1), ContextScenes.info, bs=bs, flip=0.0, num_workers=workers)
    if name == 'deepcrf':
        model = deepcrf(
            24, width=16, block_width=8, scales=(1,), shared_features=True, sample=300, backbone_options=dict(width=8)
        )
    else:
        model = name
    more = {} if name == 'deepcrf' else dict(backbone_options=dict(width=8), dropout=0.0, **OPTIONS[name])
    learn = segmentation_learner(dls, model, opt='sgd', **more, **options)
    learn.model.to(dtype)
    learn.add_cbs([Rates(), *[Double()] * (dtype == torch.float64)])
    learn.metrics = learn.metrics + [AvgMetric(pixel_error)]
    return learn


def fit(rank, name, dtype, pairs_per_step=None, epochs=1, lr=0.01, workers=0):
    learn = learner(name, dtype, workers=workers)
    cbs = [AsyncPairwiseUpdate(lr=0.01, pairs_per_step=pairs_per_step)] if pairs_per_step else []
    with distributed(learn), learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(epochs, lr, cbs=cbs)
    return dict(
        state=learn.model.state_dict(),
        rates=learn.rates.rates,
        values=[list(v) for v in learn.recorder.values],
        losses=torch.stack(learn.recorder.losses),
    )


def distance(a, b):
    "Largest difference of two states, for large numbers relative to their size"
    return max(((a[k] - v).abs() / v.abs().clamp(min=1)).max().item() for k, v in b.items() if v.is_floating_point())


F8, F4 = torch.float64, torch.float32


@pytest.mark.parametrize(
    'name, pairs_per_step, dtype, epochs',
    [
        ('fcn', None, F8, 2),
        ('encnet', None, F8, 1),
        ('mcibi', None, F8, 1),
        ('cfnet', None, F8, 1),
        ('guided', None, F8, 1),
        ('deepcrf', None, F8, 1),
        ('deepcrf', 1000, F8, 1),
        ('fcn', None, F4, 1),
        ('deepcrf', 1000, F4, 1),
    ],
)  # not MCIBI in float32, whose steps enlarge what rounding leaves
def test_two_processes_train_what_one_trains(name, pairs_per_step, dtype, epochs):
    (one,), two = (run_on_ranks(fit, n, name, dtype, pairs_per_step, epochs) for n in (1, 2))
    for rank in two:
        assert rank['rates'] == one['rates'] and len(one['rates']) == epochs * (22 // 4)
        assert distance(rank['state'], one['state']) < {F8: 1e-10, F4: 1e-5}[dtype]
        assert (rank['losses'] - one['losses']).abs().max() < 1e-5
        np.testing.assert_allclose(rank['values'][-1][2:], one['values'][-1][2:], rtol=1e-4)  # scores
    assert distance(two[0]['state'], two[1]['state']) == 0 and two[0]['values'] == two[1]['values']


@pytest.mark.parametrize('name, n_ranks, workers', [('fcn', 3, 1), ('mcibi', 4, 0)])
def test_more_processes_share_batches_of_four_and_workers_read_them(name, n_ranks, workers):
    (one,), more = (run_on_ranks(fit, n, name, F8, None, 1, 0.01, w) for n, w in ((1, 0), (n_ranks, workers)))
    for rank in more:
        assert distance(rank['state'], one['state']) < 1e-10


# ---- random numbers


class Draws(Callback):
    "What a dropout layer would draw at the first step of each epoch"

    def before_fit(self):
        self.masks = []

    def before_train(self):
        self.masks.append(torch.rand(4).tolist())


def masks(rank):
    learn = learner('fcn', F4, n=8, cbs=Draws())
    with distributed(learn), learn.no_bar(), learn.no_logging():
        learn.fit(2)
    return learn.draws.masks


def test_dropout_differs_between_ranks_and_is_reproducible():
    first, again = run_on_ranks(masks, 2), run_on_ranks(masks, 2)
    assert first == again and first[0] != first[1]
    assert run_on_ranks(masks, 1)[0] == first[0]


# ---- predictions


def predictions(rank):
    learn = learner('fcn', F4, n=8, n_valid=5, bs=3, workers=0)
    with distributed(learn), learn.no_bar(), learn.no_logging():
        learn.fit(1, 0.01)
        scores, targets = learn.get_preds()
        return dict(
            scores=scores,
            targets=targets,
            own=learn.get_preds(dl=learn.dls.test_dl([x for x, _ in scenes(3, 7)]))[0],
            one=learn.predict(scenes(1, 7)[0][0])[2],
            values=list(learn.validate()),
            after=learn.recorder.values[-1],
        )


def test_predictions_are_neither_lost_nor_doubled():
    (one,), two = (run_on_ranks(predictions, n) for n in (1, 2))
    for rank in two:
        for k in ('scores', 'targets', 'own', 'one'):
            assert rank[k].shape == one[k].shape, k
            torch.testing.assert_close(
                torch.as_tensor(rank[k]).float(), torch.as_tensor(one[k]).float(), rtol=0, atol=1e-4, check_stride=False
            )
        np.testing.assert_allclose(rank['values'][1:], one['values'][1:], rtol=1e-4)


# ---- sub-iterations of pairwise networks


def pairs_with_void(share):
    """A pairwise network, features and labels of 4 pictures of 4×5 cells, of which `share` are void, most in the
    first pictures"""
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net, f = PairwiseNet(10, 3, 16).double(), torch.randn(80, 10, dtype=F8, generator=g)
    labels = torch.randint(3, (80,), generator=g)
    labels[: int(80 * share)] = IGNORE
    return net, f.requires_grad_(), batch_range_box_edges(4, 4, 5, 'above'), labels


@pytest.mark.parametrize('share', [0.0, 0.5, 0.9, 1.0])
def test_all_pairs_in_steps_give_the_gradient_of_all_pairs_at_once(share):
    net, f, edges, labels = pairs_with_void(share)
    found = []
    for loss in (
        lambda: _all_pairs_loss(net, f, edges, labels),
        lambda: async_pairwise_loss(net, f, edges, labels, torch.optim.SGD(net.parameters(), 0.0), 37),
    ):
        value = loss()
        found.append((value.detach(), *torch.autograd.grad(value, f)))
    torch.testing.assert_close(*found, rtol=0, atol=1e-10)


# ---- ranks that fail


def fails(rank):
    dist.barrier()
    if rank:
        raise ValueError('no pictures')


def waits(rank):
    if rank:
        dist.all_reduce(torch.ones(1))


def killed(rank):
    if rank:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def test_a_rank_that_fails_ends_all():
    with pytest.raises(RuntimeError, match=r'(?s)fails on 2 processes:.*rank 1: .*ValueError: no pictures'):
        run_on_ranks(fails, 2)
    with pytest.raises(RuntimeError, match='waits on 2 processes:\nrank 0, 1: not done after 1 s'):
        run_on_ranks(waits, 2, timeout=1)
    with pytest.raises(RuntimeError, match='process 1 terminated with signal SIGKILL'):
        run_on_ranks(killed, 2)


def test_functions_carry_what_they_use():
    offset = torch.ones(1)

    def total(rank, factor):
        t = factor * (rank + offset)
        dist.all_reduce(t)
        return rank, t.item(), os.environ['WORLD_SIZE']

    assert run_on_ranks(total, 2, 10) == [(0, 30.0, '2'), (1, 30.0, '2')]


def places(rank):
    return place_in_batch(2 * rank + 1)


def test_place_in_the_batch_of_all_ranks():
    assert run_on_ranks(places, 3) == [(0, 9), (1, 9), (4, 9)]


# ---- the real command

OVERRIDES = (
    'backbone=tiny',
    'pretrained=False',
    'bs=2',
    'crop=96',
    'scale=(1,1)',
    'flip=0',
    'jitter=0',
    'refine=None',
    'pairs_per_step=5000',
    "model_options={'width':16,'block_width':8}",
)  # nothing is left to chance: what is random differs from rank to rank


def train_losses(tmp_path, data, *launcher):
    "Losses in training and validation that the recipe's first epochs print"
    environment = os.environ | dict(
        PYTHONPATH=str(Path(__file__).parent.parent), OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore'
    )
    command = [
        sys.executable,
        *launcher,
        '-m',
        'ctxseg_nb.cli',
        'train',
        '--recipe',
        'deepcrf/siftflow/vgg16',
        '--path',
        data,
        '--steps',
        3,
    ]
    ran = subprocess.run(
        [*map(str, command), '--out', str(tmp_path / f'out{len(launcher)}'), '--override', *OVERRIDES],
        env=environment,
        text=True,
        capture_output=True,
    )
    assert not ran.returncode, ran.stdout + ran.stderr
    return [
        [float(v) for v in row[:2]]
        for row in re.findall(r'^\W*\d+ +([\d.]+) +([\d.]+) +[\d.]+ ', ran.stdout.replace('\r', '\n'), re.M)
    ]


def test_deep_crf_with_async_pairs_by_torchrun(tmp_path):
    data = make_miniature('siftflow', tmp_path / 'data')
    two = train_losses(
        tmp_path, data, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2'
    )  # each rank has its own hash seed
    np.testing.assert_allclose(two, train_losses(tmp_path, data), rtol=1e-3)
    assert len(two) == 2  # the third epoch is cut short
