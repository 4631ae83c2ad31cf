"Nothing is computed on another device than the one it was given: a second device that is not there, in Python."

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from ctxseg_nb.core import IGNORE, default_device
from ctxseg_nb.crf.dense import DenseCRF, boundary_band
from ctxseg_nb.crf.guided import GuidanceCRF, guided_filter
from ctxseg_nb.evaluation.evaluator import evaluate
from ctxseg_nb.evaluation.metrics import calibration_error, class_counts, confusion_matrix, mean_iou, reliability
from ctxseg_nb.evaluation.sliding_window import Predictor
from ctxseg_nb.evaluation.tta import LearnedEnsemble, tta_predictions
from ctxseg_nb.experiments.crf_ablation import DENSE, after_dense
from ctxseg_nb.experiments.frozen_features import OnFeatures, feature_batches, presence_scores
from ctxseg_nb.experiments.suites import IlluminationShift
from ctxseg_nb.models.class_guidance import CRFWrapper, keep_true_classes
from ctxseg_nb.models.deepcrf import deepcrf
from ctxseg_nb.models.segmentor import MODELS, create_model, set_training_progress
from ctxseg_nb.training.losses import SegmentationLoss

MODELS, K = sorted(MODELS), 4

ELSEWHERE = torch.device('fpga:0')  # a type of device that PyTorch knows by name and that no machine has


class SecondDevice(TorchFunctionMode):
    """Tensors that were brought to `ELSEWHERE` say that they are there, what is computed from them is there, too,
    and they do not mix with those of the CPU"""

    MAY_MIX = {
        torch.Tensor.__getitem__,
        torch.Tensor.__setitem__,
        torch.Tensor.copy_,
    }  # indices may be on the CPU, and a copy may cross

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, '__name__', '')
        if func == torch.Tensor.device.__get__:
            return ELSEWHERE if is_elsewhere(args[0]) else func(*args)
        if func == torch.Tensor.data.__set__:
            mark(args[0], is_elsewhere(args[1]))
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
        there = any(map(is_elsewhere, tensors))
        target = [
            d
            for d in (*args, kwargs.get('device'))
            if isinstance(d, (torch.device, str)) and str(d).split(':')[0] in ('fpga', 'cpu')
        ]
        if name == 'to' and tensors[1:]:
            target, args = [ELSEWHERE if is_elsewhere(tensors[1]) else torch.device('cpu')], (args[0], tensors[1].dtype)
        if there and name == 'numpy':
            raise TypeError('numpy of a tensor that is not on the CPU')
        if name == 'cpu':
            target = [torch.device('cpu')]
        moves = bool(target) and (name in ('to', 'cpu') or 'device' in kwargs)
        if there and not moves and func not in self.MAY_MIX and any(t.ndim and not is_elsewhere(t) for t in tensors):
            raise RuntimeError(
                f'{name}: tensors on two devices, {[(tuple(t.shape), is_elsewhere(t)) for t in tensors]}'
            )
        replaced = [torch.device('cpu') if any(a is d for d in target) else a for a in args]
        if 'device' in kwargs and target:
            kwargs['device'] = torch.device('cpu')
        found = func(*replaced, **kwargs)
        on = str(target[-1]).startswith('fpga') if moves else there
        if name.startswith('__set') or name.startswith('_set'):
            return found
        return tree_map(
            lambda t: (
                mark(t if not any(t is o for o in tensors) or is_elsewhere(t) == on else t.view_as(t), on)
                if isinstance(t, torch.Tensor)
                else t
            ),
            found,
        )


def is_elsewhere(t):
    return getattr(t, '_elsewhere', False) is True


def mark(t, on):
    t._elsewhere = on
    return t


def there(x):
    "A tensor, or a module with its parameters and buffers, on the second device"
    for t in (x,) if isinstance(x, torch.Tensor) else (*x.parameters(), *x.buffers()):
        mark(t, True)
    return x


def test_the_second_device_is_one():
    with SecondDevice():
        x = there(torch.ones(2, 3))
        assert x.device == ELSEWHERE and (x + 1).device == ELSEWHERE and torch.zeros_like(x).device == ELSEWHERE
        assert torch.zeros(2, device=x.device).device == ELSEWHERE and torch.ones(2).device.type == 'cpu'
        assert (
            torch.ones(2).to(x.device).device == ELSEWHERE
            and x.cpu().device.type == 'cpu'
            and torch.ones(2).to(x).device == ELSEWHERE
        )
        assert (x * torch.tensor(2.0)).device == ELSEWHERE  # scalars may mix
        with pytest.raises(RuntimeError, match='two devices'):
            x + torch.ones(3)
        with pytest.raises(RuntimeError, match='two devices'):
            torch.cat([torch.ones(2, 3), x])
        with pytest.raises(TypeError):
            x.numpy()


def images(*size):
    return there(torch.randn(2, 3, *size))


def masks(*size):
    y = torch.randint(K, (2, *size))
    y[:, :3] = IGNORE
    return there(y)


@pytest.mark.parametrize('aux', [False, True])
@pytest.mark.parametrize('name', MODELS)
def test_models_and_their_losses(name, aux):
    model = there(create_model(name, K, aux=aux).train())
    loss = there(SegmentationLoss(model, torch.ones(K)))
    with (
        SecondDevice(),
        torch.set_grad_enabled(name != 'deepcrf'),
    ):  # checkpointing asks PyTorch for a module of the device
        x, y = images(33, 47), masks(33, 47)
        for t in (0.0, 0.5):  # the memory is updated by the second batch
            set_training_progress(model, t)
            assert is_elsewhere(loss(model(x), y))
        assert is_elsewhere(model.eval()(x))


@pytest.mark.parametrize('name', MODELS)
def test_many_views(name):
    model = there(create_model(name, K).eval())
    with SecondDevice():
        x, how = images(20, 27), dict(scales=(0.5, 1.5), flip_labels=(1, 0, 2, 3), crop=16, fill=True)
        assert is_elsewhere(Predictor(model, flip=True, **how)(x))
        scores, presence = tta_predictions(Predictor(model, flip=True, **how), x)
        assert is_elsewhere(scores) and (presence is None or is_elsewhere(presence))
        assert Predictor(model).labels(np.zeros((9, 12, 3), np.uint8)).shape == (9, 12)


def test_weights_of_views():
    how = there(LearnedEnsemble(2, K))
    with SecondDevice():
        scores = there(torch.randn(2, 1, K, 5, 6).log_softmax(2))
        assert is_elsewhere(how(scores))


def test_metrics():
    with SecondDevice():
        scores, y = there(torch.randn(2, K, 9, 12)), masks(9, 12)
        cm = confusion_matrix(scores, y, K)
        counts = class_counts(scores, y, K)
        assert (
            is_elsewhere(cm)
            and is_elsewhere(counts)
            and is_elsewhere(calibration_error(reliability(scores.softmax(1), y)))
        )
        assert 0 <= mean_iou(counts.sum(0), background=0) <= 1  # a number, on the host
        assert (
            is_elsewhere(class_counts(scores.argmax(1), y, K))
            and is_elsewhere(keep_true_classes(scores, y))
            and is_elsewhere(boundary_band(y))
        )


def test_dense_and_guided_fields():
    dense, field = there(DenseCRF(**DENSE)), there(GuidanceCRF(3))
    with SecondDevice():
        scores, picture = there(torch.randn(1, K, 12, 17)), there(255 * torch.rand(1, 3, 12, 17))
        assert is_elsewhere(dense(scores, picture))
        for form in ('additive', 'pairwise'):
            field = there(GuidanceCRF(3, form=form))
            assert is_elsewhere(field(scores, picture / 255, there(torch.randn(1, K))))
        assert is_elsewhere(guided_filter(picture / 255, scores, 2, 1e-3))
        assert is_elsewhere(after_dense(lambda x: there(torch.randn(1, K, 12, 17)), **DENSE)(images(12, 17)[:1]))


def test_a_guided_model_with_its_field():
    model = there(CRFWrapper(create_model('guided', K, width=8, fc=8, joint=8), GuidanceCRF(3)).train())
    loss = there(SegmentationLoss(model))
    with SecondDevice():
        x, y = images(24, 33), masks(24, 33)
        assert is_elsewhere(loss(model(x), y)) and is_elsewhere(model.eval()(x))


def test_another_light():
    light = there(IlluminationShift((40, 5, -40)))
    with SecondDevice():
        assert is_elsewhere(light(images(4, 5)))


def test_heads_on_stored_features():
    net = there(OnFeatures(create_model('encnet', K, 'squeezenet1_0', stage3=False), (16, 24)))
    maps, labels = np.zeros((3, 2, 512, 2, 3), np.float16), np.zeros((3, 16, 24), np.uint8)
    with SecondDevice():
        assert (
            evaluate(net, feature_batches(maps, labels, ELSEWHERE), K).shape == (3, K, 3)
            and presence_scores(net, maps).device.type == 'cpu'
        )


def test_default_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    assert [default_device(n).type for n in ('auto', 'cpu', 'mps')] == ['mps', 'cpu', 'mps']
    for name, says in (
        ('cuda', "no 'cuda', it has mps, cpu"),
        ('tpu', "found 'tpu'"),
        ('cpu:1', "no 'cpu:1'"),
        ('cuda:x', 'expected auto'),
    ):
        with pytest.raises(ValueError, match=says):
            default_device(name)


def test_sampled_pairs_without_memory():
    "The memory of a deep CRF whose pairs are sampled is counted on the meta device"
    with torch.device('meta'):
        model = deepcrf(5, width=8, block_width=4, sample=10, backbone_options=dict(width=4)).train()
    x, y = torch.randn(2, 3, 32, 32, device='meta'), torch.zeros(2, 32, 32, dtype=torch.long, device='meta')
    assert SegmentationLoss(model)(model(x), y).device.type == 'meta'
