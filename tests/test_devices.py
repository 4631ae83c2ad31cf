"Nothing is computed on another device than the one it was given: a second device that is not there, in Python."
import numpy as np, pytest, torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map
from ctxseg_nb import cli
from ctxseg_nb.core import IGNORE, default_device

ELSEWHERE = torch.device('fpga:0')  # a type of device that PyTorch knows by name and that no machine has


class SecondDevice(TorchFunctionMode):
    "Tensors that were brought to `ELSEWHERE` say that they are there, what is computed from them is there, too, and they do not mix with those of the CPU"
    MAY_MIX = {torch.Tensor.__getitem__, torch.Tensor.__setitem__, torch.Tensor.copy_}   # indices may be on the CPU, and a copy may cross

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, '__name__', '')
        if func == torch.Tensor.device.__get__: return ELSEWHERE if is_elsewhere(args[0]) else func(*args)
        if func == torch.Tensor.data.__set__: mark(args[0], is_elsewhere(args[1]))
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
        there = any(map(is_elsewhere, tensors))
        target = [d for d in (*args, kwargs.get('device')) if isinstance(d, (torch.device, str)) and str(d).split(':')[0] in ('fpga', 'cpu')]
        if name == 'to' and tensors[1:]: target, args = [ELSEWHERE if is_elsewhere(tensors[1]) else torch.device('cpu')], (args[0], tensors[1].dtype)
        if there and name == 'numpy': raise TypeError('numpy of a tensor that is not on the CPU')
        if name == 'cpu': target = [torch.device('cpu')]
        moves = bool(target) and (name in ('to', 'cpu') or 'device' in kwargs)
        if there and not moves and func not in self.MAY_MIX and any(t.ndim and not is_elsewhere(t) for t in tensors):
            raise RuntimeError(f'{name}: tensors on two devices, {[(tuple(t.shape), is_elsewhere(t)) for t in tensors]}')
        replaced = [torch.device('cpu') if any(a is d for d in target) else a for a in args]
        if 'device' in kwargs and target: kwargs['device'] = torch.device('cpu')
        found = func(*replaced, **kwargs)
        on = str(target[-1]).startswith('fpga') if moves else there
        if name.startswith('__set') or name.startswith('_set'): return found
        return tree_map(lambda t: mark(t if not any(t is o for o in tensors) or is_elsewhere(t) == on else t.view_as(t), on) if isinstance(t, torch.Tensor) else t, found)


def is_elsewhere(t): return getattr(t, '_elsewhere', False) is True


def mark(t, on):
    t._elsewhere = on
    return t


def there(x):
    "A tensor, or a module with its parameters and buffers, on the second device"
    for t in (x,) if isinstance(x, torch.Tensor) else (*x.parameters(), *x.buffers()): mark(t, True)
    return x


def test_the_second_device_is_one():
    with SecondDevice():
        x = there(torch.ones(2, 3))
        assert x.device == ELSEWHERE and (x + 1).device == ELSEWHERE and torch.zeros_like(x).device == ELSEWHERE
        assert torch.zeros(2, device=x.device).device == ELSEWHERE and torch.ones(2).device.type == 'cpu'
        assert torch.ones(2).to(x.device).device == ELSEWHERE and x.cpu().device.type == 'cpu' and torch.ones(2).to(x).device == ELSEWHERE
        assert (x*torch.tensor(2.)).device == ELSEWHERE   # scalars may mix
        with pytest.raises(RuntimeError, match='two devices'): x + torch.ones(3)
        with pytest.raises(RuntimeError, match='two devices'): torch.cat([torch.ones(2, 3), x])
        with pytest.raises(TypeError): x.numpy()
