"Several processes train what one process trains: batches, schedules, weights, scores; failures end all of them."
import os, signal, subprocess, sys
from pathlib import Path
import numpy as np, pytest, torch, torch.distributed as dist
from fastai.basics import AvgMetric, Callback, DataLoader, set_seed
from torch import nn
from ctxseg_nb.core import IGNORE, place_in_batch
from ctxseg_nb.data.blocks import segmentation_dls
from ctxseg_nb.data.scenes import ContextScenes
from ctxseg_nb.models.deepcrf import PairwiseNet, batch_edges, deepcrf, sub_iterations, _pair_loss
from ctxseg_nb.training.asynchronous import AsynchronousPairs
from ctxseg_nb.training.distributed import ShardedDL, distributed, on_ranks
from ctxseg_nb.training.learner import segmentation_learner

REPOSITORY = Path(__file__).parent.parent


# ---- which rank reads which picture

@pytest.mark.parametrize('n_ranks', [2, 3])
@pytest.mark.parametrize('n, bs, drop_last', [(37, 4, True), (22, 4, True), (22, 4, False), (7, 3, True), (16, 16, True), (5, 5, False)])
def test_training_batches_are_those_of_one_process(n, bs, drop_last, n_ranks):
    dl = DataLoader(range(n), bs=bs, drop_last=drop_last)
    if not drop_last and n % bs and n % bs < n_ranks: pytest.skip('a last batch that is too small; see below')
    ranks = [ShardedDL(dl, rank, n_ranks, training=True) for rank in range(n_ranks)]
    assert [len(r) for r in ranks] == [len(dl)]*n_ranks
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
    assert max(numbers) - min(numbers) <= -(-bs//n_ranks)


def test_workers_read_the_same():
    for training in (True, False):
        read = [[batch.tolist() for batch in ShardedDL(DataLoader(range(23), bs=5, num_workers=w, drop_last=training), 1, 2, training)] for w in (0, 2)]
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
    for i, (_, mask) in enumerate(pairs): mask[:3*(i % 8)] = IGNORE
    return pairs

class Double(Callback):
    def before_batch(self): self.learn.xb = tuple(x.double() for x in self.xb)

class Rates(Callback):
    def before_fit(self): self.rates = []
    def after_step(self): self.rates.append(self.opt.hypers[-1]['lr'])

def pixel_error(pred, target): return (pred.argmax(1) != target).float().mean((1, 2)).mean()

OPTIONS = dict(mcibi=dict(init='first_mean'), deepcrf=dict(width=16), encnet={}, fcn={})

def learner(name, dtype=torch.float64, n=22, n_valid=5, bs=4, workers=0, **options):
    set_seed(0, reproducible=True)
    dls = segmentation_dls(scenes(n, 0), scenes(n_valid, 1), ContextScenes.card, bs=bs, flip=0., num_workers=workers)
    if name == 'deepcrf': model = deepcrf(24, width=16, block_width=8, scales=(1,), shared_features=True, sample=300, backbone_options=dict(width=8))
    else: model = name
    more = {} if name == 'deepcrf' else dict(backbone_options=dict(width=8), dropout=0., **OPTIONS[name])
    learn = segmentation_learner(dls, model, opt='sgd', **more, **options)
    learn.model.to(dtype)
    learn.add_cbs([Rates(), *[Double()]*(dtype == torch.float64)])
    learn.metrics = learn.metrics + [AvgMetric(pixel_error)]
    return learn

def fit(rank, name, dtype, portion=None, epochs=2, lr=.01, **options):
    learn = learner(name, dtype, **options)
    cbs = [AsynchronousPairs(lr=.01, n=portion)] if portion else []
    with distributed(learn), learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, lr, cbs=cbs)
    return dict(state=learn.model.state_dict(), rates=learn.rates.rates, values=[list(v) for v in learn.recorder.values], losses=torch.stack(learn.recorder.losses))

def distance(a, b):
    "Largest difference of two states, for large numbers relative to their size"
    return max(((a[k] - v).abs()/v.abs().clamp(min=1)).max().item() for k, v in b.items() if v.is_floating_point())

@pytest.mark.parametrize('name, portion', [('fcn', None), ('encnet', None), ('mcibi', None), ('deepcrf', None), ('deepcrf', 200)])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_two_processes_train_what_one_trains(name, portion, dtype):
    (one,), two = (on_ranks(fit, n, name, dtype, portion) for n in (1, 2))
    limit = {torch.float64: 1e-10, torch.float32: 1e-5}[dtype]
    for rank in two:
        assert rank['rates'] == one['rates'] and len(one['rates']) == 2*(22//4)
        assert distance(rank['state'], one['state']) < limit
        assert (rank['losses'] - one['losses']).abs().max() < 1e-5
    assert distance(two[0]['state'], two[1]['state']) == 0


def test_three_processes_and_batches_that_they_cannot_halve():
    (one,), three = (on_ranks(fit, n, 'fcn', torch.float64) for n in (1, 3))
    for rank in three: assert distance(rank['state'], one['state']) < 1e-10


def test_scores_are_those_of_one_process():
    (one,), two = (on_ranks(fit, n, 'fcn', torch.float64, None, 1) for n in (1, 2))
    for rank in two: np.testing.assert_allclose(rank['values'][0][2:], one['values'][0][2:], rtol=1e-6)
    assert two[0]['values'] == two[1]['values']
