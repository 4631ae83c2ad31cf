"The heads and layers of the methods: bad input, types, sizes, memory layouts, options that a file keeps."

import pytest
import torch
from safetensors.torch import save_file

from ctxseg_nb.models.cfnet import (
    ACF,
    CFM,
    CFHead,
    cfnet,
    contextual_prior,
    cooccurrence_map,
    cooccurrence_prob,
    mixture_attention,
)
from ctxseg_nb.models.deepcrf import DeepCRFHead, deepcrf, vgg16_fc6
from ctxseg_nb.models.encnet import ContextEncoding, Encoding, encnet, encode
from ctxseg_nb.models.encnet_cifar import CifarNet, cifar_encnet, cifar_resnet, cifar_seresnet
from ctxseg_nb.models.segmentor import create_model, fcn, load_segmentor, save_segmentor
from ctxseg_nb.training.losses import SegmentationLoss

HALVES = torch.bfloat16, torch.float16


# ---- bad input


def attention(b=2, n_mix=3, targets=7, positions=5, d=4):
    u, v = torch.randn(b, n_mix, positions, d), torch.randn(b, n_mix, targets, d)
    return u, v, torch.randn(b, positions, 6), torch.rand(b, n_mix).softmax(1)


def cifar(x):
    return CifarNet(8)(x)


u, v, psi, prior = attention()
BAD = {
    'encoding, channels': (
        lambda: Encoding(6, 4)(torch.randn(2, 5, 6)),
        r'expected features \(B, 6, ...\), found \(2, 5, 6\)',
    ),
    'encoding, dimensions': (lambda: Encoding(6, 4)(torch.randn(2, 6)), r'found \(2, 6\)'),
    'encoding, aggregate': (lambda: ContextEncoding(6, aggregate='max'), "'sum' or 'mean', found 'max'"),
    'co-occurrence, mixtures': (lambda: cooccurrence_prob(u, v[:, :2]), r'found \(2, 3, 5, 4\) and \(2, 2, 7, 4\)'),
    'co-occurrence, prior': (lambda: cooccurrence_prob(u, v, prior[:1]), r'prior: expected \(2, 3\), found \(1, 3\)'),
    'prior': (lambda: contextual_prior(v, torch.randn(2, 12)), r'w \(M, M·d\), found \(2, 3, 7, 4\) and \(2, 12\)'),
    'attention': (lambda: mixture_attention(u, v, psi[:, :3]), r'psi: expected \(2, 5, d_v\), found \(2, 3, 6\)'),
    'cfm, width': (lambda: CFM(64, n_mix=3), 'dim: expected a multiple of n_heads·n_mix = 4·3, found 64'),
    'cfm, mixtures': (lambda: CFM(64, n_mix=0), 'at least 1, found'),
    'cfnet, nothing': (lambda: CFHead([8], 5, acf=False, global_pool=False), 'acf or global_pool'),
    'cfnet, options': (lambda: create_model('cfnet_pool', 5, dilation=2), 'acf: expected True with dilation'),
    'map, outside': (
        lambda: cooccurrence_map(cfnet(5), torch.randn(3, 33, 47), (33, 0)),
        r'a pixel of the 33×47 image, found \(33, 0\)',
    ),
    'map, fcn': (
        lambda: cooccurrence_map(fcn(5), torch.randn(3, 33, 47), (0, 0)),
        'an ACF module, found FCNHead without',
    ),
    'map, pooling': (
        lambda: cooccurrence_map(create_model('cfnet_pool', 5), torch.randn(3, 33, 47), (0, 0)),
        'found CFHead without',
    ),
    'deep CRF, maps': (
        lambda: DeepCRFHead([8, 8], 3, separate=True),
        'expected 3 maps, one for each potential, found 2',
    ),
    'cifar, width': (lambda: CifarNet(6), 'width: expected a multiple of 4, found 6'),
    'cifar, channels': (
        lambda: cifar(torch.randn(2, 1, 32, 32)),
        r'expected floating images \(B, 3, H, W\), found \(2, 1, 32, 32\)',
    ),
}


@pytest.mark.parametrize('what', BAD)
def test_bad_input(what):
    call, message = BAD[what]
    with pytest.raises(ValueError, match=message):
        call()


def test_files_that_are_not_vgg(tmp_path):
    save_file({'features.0.weight': torch.zeros(64, 3, 3, 3)}, tmp_path / 'half.safetensors')
    with torch.device('meta'):  # the network's 120 million numbers are of no interest here
        with pytest.raises(ValueError, match='half.safetensors: does not fit VGG-16'):
            vgg16_fc6(tmp_path / 'half.safetensors')
        with pytest.raises(FileNotFoundError, match='none.safetensors'):
            vgg16_fc6(tmp_path / 'none.safetensors')


# ---- types, sizes and layouts


@pytest.mark.parametrize('half', HALVES)
def test_encoding_in_half_precision(half):
    "Nothing but the input is rounded"
    layer, maps = Encoding(6, 4), torch.randn(2, 6, 5, 7)
    with torch.autocast('cpu', half):
        e = layer(maps.to(half))
    assert e.dtype == torch.float32
    torch.testing.assert_close(e, layer(maps.to(half).float()))
    assert (e - layer(maps)).abs().max() < 1e-2 * e.abs().max()


def test_encoding_of_other_layouts_and_types():
    layer, maps = Encoding(6, 4), torch.randn(2, 6, 5, 7)
    turned = maps.transpose(2, 3)
    torch.testing.assert_close(layer(turned), layer(turned.contiguous()))
    torch.testing.assert_close(layer(maps.to(memory_format=torch.channels_last)), layer(maps))
    assert layer.double()(maps.double()).dtype == torch.float64


def test_encoding_without_smoothing_has_gradients():
    x, d, s = (
        torch.randn(2, 3, 5, requires_grad=True),
        torch.randn(4, 3, requires_grad=True),
        torch.zeros(4, requires_grad=True),
    )
    encode(x, d, s).sin().sum().backward()
    assert all(t.grad.isfinite().all() for t in (x, d, s))


@pytest.mark.parametrize('half', HALVES)
def test_attention_in_half_precision(half):
    "Scores far beyond the largest float16 number give what rounded inputs give"
    u, v, psi, prior = attention()
    u, v, psi = [t.to(half) for t in (300 * u, 300 * v, psi)]
    exact = cooccurrence_prob(u.double(), v.double(), prior) @ psi.double()
    z = mixture_attention(u, v, psi, prior)
    assert z.dtype == half
    torch.testing.assert_close(z.double(), exact, atol=4 * torch.finfo(half).eps, rtol=4 * torch.finfo(half).eps)


@pytest.mark.parametrize('pool', [True, False])
@pytest.mark.parametrize('size', [(1, 1), (1, 6), (2, 2), (7, 5), (24, 24)])
def test_co_occurrent_features_of_any_size(pool, size):
    acf = ACF(16, pool=pool)
    assert acf.train()(torch.randn(2, 16, *size)).shape == (2, 16, *size)
    assert acf.eval()(torch.randn(1, 16, *size)).isfinite().all()


def test_co_occurrent_features_of_one_cell_in_training():
    assert ACF(16)(torch.randn(1, 16, 1, 1)).shape == (1, 16, 1, 1)


# ---- networks with options

NETS = dict(
    encnet=lambda: encnet(5, backbone_options=dict(width=8), aux=True),
    encnet_released=lambda: encnet(5, backbone_options=dict(width=8), residual=True, aggregate='mean'),
    cfnet=lambda: cfnet(5, backbone_options=dict(width=8), width=16, encoding=True),
    deepcrf=lambda: deepcrf(5, width=16, block_width=8, backbone_options=dict(width=8)),
)


@pytest.mark.parametrize('name', NETS)
def test_a_file_keeps_the_options(name, tmp_path):
    model, x = NETS[name]().eval(), torch.randn(2, 3, 33, 47)
    save_segmentor(model, tmp_path / 'm', list('abcde'))
    again, info = load_segmentor(tmp_path / 'm')
    with torch.no_grad():
        torch.testing.assert_close(again(x), model(x))
    assert info['config'] == model.config


@pytest.mark.parametrize('name', NETS)
def test_autocast_in_training_and_evaluation(name):
    model, x = NETS[name](), torch.randn(2, 3, 33, 47)
    with torch.no_grad():
        full = model.eval()(x)
        with torch.autocast('cpu', torch.bfloat16):
            half = model(x).float()
        for size in ((1, 1), (8, 65)):
            assert model(torch.randn(1, 3, *size)).shape == (1, 5, *size)
    assert (half - full).std() < 0.1 * full.std()
    with torch.autocast('cpu', torch.bfloat16):
        out = model.train()(x)
    SegmentationLoss(model)(out, torch.randint(5, (2, 33, 47))).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


# ---- networks for 32×32 pictures

CIFAR = dict(
    encnet=lambda: cifar_encnet(4, 8),
    resnet=lambda: cifar_resnet(8),
    projection=lambda: cifar_resnet(8, True),
    seresnet=lambda: cifar_seresnet(8),
)


@pytest.mark.parametrize('name', CIFAR)
def test_pictures_of_any_size_and_type(name):
    net = CIFAR[name]().eval()
    for b, h, w in [(1, 1, 1), (3, 33, 29), (2, 5, 64), (0, 32, 32)]:
        assert net(torch.randn(b, 3, h, w)).shape == (b, 10)
    x = torch.randn(4, 3, 32, 32)
    high = net(x)
    with torch.autocast('cpu', torch.bfloat16):
        low = net(x)
    assert (low.float() - high).norm() < 0.05 * high.norm()
    for dtype in (torch.float64, torch.bfloat16):
        assert net.to(dtype)(x.to(dtype)).dtype == dtype


@pytest.mark.parametrize('kind', ['zeros', 'huge', 'turned', 'channels last'])
def test_gradients_of_unusual_pictures(kind):
    x = torch.randn(2, 3, 8, 8)
    x = {
        'zeros': 0 * x,
        'huge': 1e4 * x,
        'turned': x.mT,
        'channels last': x.contiguous(memory_format=torch.channels_last),
    }[kind]
    net = cifar_encnet(1, 4)
    y = net(x)
    y.sum().backward()
    assert y.isfinite().all() and all(p.grad.isfinite().all() for p in net.parameters() if p.requires_grad)
