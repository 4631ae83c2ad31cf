"Import, train, predict, save and load, in seconds: run by `make test` with the pinned and with the newest fastai."

import sys
import tempfile

import ctxseg_nb

assert 'torch' not in sys.modules, '`import ctxseg_nb` alone must not import torch'

from pathlib import Path

import fastai
import fastcore
import matplotlib
import torch
import torchvision
from PIL import Image

from ctxseg_nb.all import *
from ctxseg_nb.cli import main

matplotlib.use('agg')
torch.set_num_threads(1)
torch.manual_seed(0)
dls = scenes_dls(n_train=32, n_valid=16, size=64, bs=8)
learn = segmentation_learner(dls, 'fcn')
with learn.no_bar(), learn.no_logging():
    learn.fit_one_cycle(1)
losses = torch.stack(learn.recorder.losses)
assert len(losses) == 4 and losses.isfinite().all(), f'expected 4 finite losses, one a batch, found {losses}'
with learn.no_bar():
    learn.show_results(max_n=2)

with tempfile.TemporaryDirectory() as tmp:
    image, path = Path(tmp) / 'grey.png', Path(tmp) / 'fcn'
    Image.new('RGB', (64, 64), (128,) * 3).save(image)
    with learn.no_bar():
        mask = torch.as_tensor(learn.predict(image)[0])
    assert tuple(mask.shape[-2:]) == (64, 64), f'expected a mask of 64×64, found {tuple(mask.shape)}'
    save_segmentor(learn.model, path, class_names=dls.vocab)
    model, info = load_segmentor(path)
    code = main(['demo', '--epochs', '1', '--n-train', '16', '--n-valid', '5', '--size', '48', '--out', tmp])
    assert code == 0, f'ctxseg demo ended with {code}'

x = torch.randn(2, 3, 33, 47)
with torch.no_grad():
    before, after = learn.model.eval()(x), model.eval()(x)
assert torch.equal(before, after), 'a model that was saved and loaded must give the same logits'
print(
    'smoke test passed:',
    ', '.join(f'{m.__name__} {m.__version__}' for m in (ctxseg_nb, fastai, fastcore, torch, torchvision)),
)
