"Every model and backbone of the registries keeps the promises that a user relies on."

import fastai.callback.all  # noqa: F401, learners get no_bar and fit_one_cycle
import pytest
import torch
from fastai.basics import DataLoader, DataLoaders, Learner

from ctxseg_nb.core import IGNORE
from ctxseg_nb.models.backbones import BACKBONES, create_backbone
from ctxseg_nb.models.segmentor import MODELS, create_model
from ctxseg_nb.training.losses import SegmentationLoss

MODELS = sorted(MODELS)
K = 5


def images(b=2, h=33, w=47):
    return torch.randn(b, 3, h, w)


def masks(b=2, h=33, w=47):
    return torch.randint(K, (b, h, w))


def loss_of(model, x, y):
    return SegmentationLoss(model)(model(x), y)


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('size', [(33, 47), (24, 64), (1, 1)])
def test_odd_sizes(name, size):
    with torch.no_grad():
        logits = create_model(name, K).eval()(images(2, *size))
    assert logits.shape == (2, K, *size) and logits.isfinite().all()


@pytest.mark.parametrize('name', MODELS)
def test_pictures_of_a_batch_do_not_mix(name):
    "In evaluation a picture has the logits that it has alone"
    model, x = create_model(name, K).eval(), images(3)
    with torch.no_grad():
        together, alone = model(x), torch.cat([model(one[None]) for one in x])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('layout', ['channels last', 'a slice'])
def test_memory_layout_does_not_matter(name, layout):
    model, x = create_model(name, K).eval(), images()
    other = (
        x.to(memory_format=torch.channels_last)
        if layout == 'channels last'
        else images(2, 66, 94)[:, :, ::2, ::2].copy_(x)
    )
    assert not other.is_contiguous()
    with torch.no_grad():
        torch.testing.assert_close(model(other), model(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('name', MODELS)
def test_gradients_reach_every_parameter(name):
    model = create_model(name, K).train()
    loss_of(model, images(), masks()).backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing, f'{name}: no gradient for {missing}'
    wrong = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    assert not wrong, f'{name}: a gradient that is not finite for {wrong}'


@pytest.mark.parametrize('name', MODELS)
def test_autocast(name):
    "bfloat16 changes the logits by its rounding only, and the loss is float32"
    model, x, y = create_model(name, K), images(), masks()
    with torch.no_grad():
        full = model.eval()(x)
        with torch.autocast('cpu', torch.bfloat16):
            half = model(x)
        assert (half.float() - full).abs().max() < 0.1 * full.abs().max().clamp(min=1)
    model.train()
    with torch.autocast('cpu', torch.bfloat16):
        loss = loss_of(model, x, y)
    assert loss.dtype == torch.float32 and loss.isfinite()
    loss.backward()


@pytest.mark.parametrize('name', MODELS)
def test_double_precision(name):
    model = create_model(name, K).double().eval()
    with torch.no_grad():
        assert model(images().double()).dtype == torch.float64


@pytest.mark.parametrize('name', MODELS)
def test_plain_loop(name):
    "Ten steps of a loop without fastai on one batch lower the cross-entropy of its pixels"
    model, x, y = create_model(name, K).train(), images(4, 24, 24), masks(4, 24, 24)
    y[:, :3] = IGNORE
    optimizer, loss_function, losses = torch.optim.Adam(model.parameters(), 3e-3), SegmentationLoss(model), []
    for _ in range(10):
        loss = loss_function(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss_function.values['pixel'].item())
    assert losses[-1] < losses[0], losses


@pytest.mark.parametrize('name', MODELS)
def test_plain_learner(name, tmp_path):
    "A fastai Learner that this library did not make trains, scores, predicts, saves and loads every model"
    items = [(x, y) for x, y in zip(images(4, 24, 24), masks(4, 24, 24))]
    dls = DataLoaders(DataLoader(items, bs=2), DataLoader(items, bs=2))
    model = create_model(name, K)
    learn = Learner(dls, model, SegmentationLoss(model), path=tmp_path)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1, 1e-3)
        predictions, targets = learn.get_preds()
        assert predictions.shape == (4, K, 24, 24) and torch.equal(targets, torch.stack([y for _, y in items]))
        value = learn.validate()[0]
        learn.save('model')
        for p in model.parameters():
            p.data.zero_()
        learn.load('model')
        assert learn.validate()[0] == value


@pytest.mark.parametrize('name', MODELS)
def test_training_state_is_in_the_state_dict(name):
    "A copy that takes over the state after two steps of training gives the same logits"
    torch.manual_seed(0)
    model = create_model(name, K).train()
    for _ in range(2):
        loss_of(model, images(), masks()).backward()
    copy = create_model(name, K)
    copy.load_state_dict(model.state_dict())
    x = images()
    with torch.no_grad():
        assert torch.equal(model.eval()(x), copy.eval()(x))


ONE_GRAPH = tuple(map(int, torch.__version__.split('.')[:2])) >= (
    2,
    14,
)  # older compilers break at dictionaries and autocast


@pytest.mark.parametrize('name', MODELS)
def test_compiled(name):
    "`torch.compile` gives the same logits, and today's traces the forward pass into one graph"
    torch._dynamo.reset()
    model, x = create_model(name, K).eval(), images()
    with torch.no_grad():
        logits = torch.compile(model, backend='eager', fullgraph=ONE_GRAPH)(x)
        torch.testing.assert_close(logits, model(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('name', sorted(BACKBONES))
def test_backbone(name):
    "Maps have the channels and the strides that a backbone says"
    net = create_backbone(name).eval()
    with torch.no_grad():
        maps = net(images(1, 65, 97))
    assert [m.shape[1] for m in maps] == list(net.channels)
    for m, s in zip(maps, net.strides):
        assert abs(m.shape[2] - 65 / s) <= 1 and abs(m.shape[3] - 97 / s) <= 1, (m.shape, s)
