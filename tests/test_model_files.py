"""Files that the library writes and reads: whole or not at all, what is in them is checked, and nothing in them is
executed."""

import errno
import io
import json
import multiprocessing
import os
import pickle
import signal
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from ctxseg_nb.cli import main
from ctxseg_nb.core import atomic_write, write_figure, write_json
from ctxseg_nb.crf.guided import GuidanceCRF
from ctxseg_nb.evaluation.export import export_onnx, export_program, load_exported, trace_model
from ctxseg_nb.models.backbones import open_tensors
from ctxseg_nb.models.class_guidance import CRFWrapper
from ctxseg_nb.models.deepcrf import deepcrf
from ctxseg_nb.models.segmentor import MODELS, create_model, load_segmentor, save_segmentor

MODELS = sorted(MODELS)
KEY = 'ctxseg.json'  # of the card in a file's metadata


# ---- Writing a file whole or not at all


def write(path, text='new'):
    with atomic_write(path) as tmp:
        tmp.write_text(text)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize('mask, mode', [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_new_file_respects_umask(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        write(tmp_path / 'a.txt')
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / 'a.txt').stat().st_mode) == mode


def test_replaced_file_keeps_its_permissions(tmp_path):
    (tmp_path / 'a.txt').write_text('old')
    (tmp_path / 'a.txt').chmod(0o640)
    write(tmp_path / 'a.txt')
    assert (tmp_path / 'a.txt').read_text() == 'new' and stat.S_IMODE((tmp_path / 'a.txt').stat().st_mode) == 0o640


@pytest.mark.parametrize('there', [True, False])
def test_symbolic_link_stays_and_its_target_is_written(tmp_path, there):
    (tmp_path / 'far').mkdir()
    if there:
        (tmp_path / 'far' / 'a.txt').write_text('old')
    (tmp_path / 'link.txt').symlink_to(tmp_path / 'far' / 'a.txt')
    write(tmp_path / 'link.txt')
    assert (tmp_path / 'link.txt').is_symlink() and (tmp_path / 'far' / 'a.txt').read_text() == 'new'
    assert names(tmp_path) == ['far', 'link.txt'] and names(tmp_path / 'far') == ['a.txt']


KILLED = '''
import os, signal, sys
from ctxseg_nb.core import atomic_write
with atomic_write(sys.argv[1]) as tmp:
    tmp.write_text('half')
    os.kill(os.getpid(), signal.SIGKILL)
'''


def test_temporary_files_of_killed_writers_do_not_pile_up(tmp_path):
    (tmp_path / 'a.txt').write_text('old')
    environment = os.environ | dict(PYTHONPATH=str(Path(__file__).parent.parent))
    done = subprocess.run([sys.executable, '-c', KILLED, tmp_path / 'a.txt'], env=environment)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / 'a.txt').read_text() == 'old' and len(names(tmp_path)) == 2
    write(tmp_path / 'a.txt')
    assert (tmp_path / 'a.txt').read_text() == 'new' and names(tmp_path) == ['a.txt']


def _write_often(path, text, n):
    for _ in range(n):
        write(path, text * 10000)


def test_two_writers_and_a_reader(tmp_path):
    write(tmp_path / 'a.txt', 'a' * 10000)
    fork = multiprocessing.get_context('fork')
    writers = [fork.Process(target=_write_often, args=(tmp_path / 'a.txt', letter, 100)) for letter in 'ab']
    for w in writers:
        w.start()
    while any(w.is_alive() for w in writers):
        assert (tmp_path / 'a.txt').read_text() in ('a' * 10000, 'b' * 10000)
    for w in writers:
        w.join()
    assert [w.exitcode for w in writers] == [0, 0] and names(tmp_path) == ['a.txt']


def is_full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')


def as_nobody(test):
    "Run `test()` as a user for whom read-only means read-only, in a child process; the text of its OSError"

    def run(queue):
        if os.getuid() == 0:
            os.setuid(65534)
        try:
            test()
        except OSError as e:
            queue.put(str(e))
        else:
            queue.put('no error')

    fork = multiprocessing.get_context('fork')
    queue = fork.SimpleQueue()
    child = fork.Process(target=run, args=(queue,))
    child.start()
    child.join()
    return queue.get()


@pytest.mark.parametrize(
    'path, why',
    [
        ('folder', 'expected a file, found a folder'),
        ('fifo', 'found a folder or a device'),
        ('file/a.txt', ''),
        ('a' * 300, ''),
        ('loop', ''),
    ],
)
def test_places_that_cannot_be_written(tmp_path, path, why):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'file').write_text('old')
    (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
    os.mkfifo(tmp_path / 'fifo')
    before = names(tmp_path)
    with pytest.raises(OSError, match=f'cannot write .*{path}: .*{why}'):
        write(tmp_path / path)
    assert names(tmp_path) == before and (tmp_path / 'file').read_text() == 'old'


def test_missing_folders_are_made(tmp_path):
    write(tmp_path / 'a' / 'b' / 'c.txt')
    assert (tmp_path / 'a' / 'b' / 'c.txt').read_text() == 'new'


@pytest.mark.parametrize('locked', ['folder', 'file'])
def test_read_only(tmp_path, locked):
    for p in (tmp_path, *tmp_path.parents[:3]):
        p.chmod(0o755)  # pytest's folders are for their owner only
    (tmp_path / 'a.txt').write_text('old')
    if locked == 'file':
        tmp_path.chmod(0o777)
    else:
        tmp_path.chmod(0o555)
    (tmp_path / 'a.txt').chmod(0o444 if locked == 'file' else 0o666)
    assert 'cannot write' in (found := as_nobody(lambda: write(tmp_path / 'a.txt'))) and 'a.txt: ' in found
    assert names(tmp_path) == ['a.txt'] and (tmp_path / 'a.txt').read_text() == 'old'


@pytest.mark.parametrize('step', ['write_text', 'os.fsync', 'replace'])
def test_full_disk(tmp_path, monkeypatch, step):
    (tmp_path / 'a.txt').write_text('old')
    monkeypatch.setattr(*(('os.fsync',) if step == 'os.fsync' else (Path, step)), is_full)
    with pytest.raises(OSError, match='cannot write .*a.txt: No space left') as e:
        write(tmp_path / 'a.txt')
    assert e.value.errno == errno.ENOSPC
    assert names(tmp_path) == ['a.txt'] and (tmp_path / 'a.txt').read_text() == 'old'


def test_error_without_number_names_the_file(tmp_path):
    with (
        pytest.raises(OSError, match='cannot write .*a.txt: cannot write mode RGBA as JPEG'),
        atomic_write(tmp_path / 'a.txt'),
    ):
        raise OSError('cannot write mode RGBA as JPEG')


def test_json_has_no_nan(tmp_path):
    write_json(
        tmp_path / 'a.json', dict(a=float('nan'), b=[np.float64('inf'), (1, -np.inf)], c='NaN', d=np.float64(0.5))
    )

    def refuse(word):
        raise AssertionError(f'{word} is not JSON')

    assert json.loads((tmp_path / 'a.json').read_text(), parse_constant=refuse) == dict(
        a=None, b=[None, [1, None]], c='NaN', d=0.5
    )


def test_figures_are_replaced_whole(tmp_path, monkeypatch):
    (tmp_path / 'a.png').write_text('old')
    figure = plt.figure()
    monkeypatch.setattr(figure, 'savefig', lambda *_, **__: is_full())
    with pytest.raises(OSError, match='cannot write .*a.png: No space left'):
        write_figure(tmp_path / 'a.png', figure)
    assert names(tmp_path) == ['a.png'] and (tmp_path / 'a.png').read_text() == 'old'
    write_figure(tmp_path / 'a.png', plt.figure())
    assert (tmp_path / 'a.png').read_bytes()[1:4] == b'PNG' and not plt.get_fignums()


def test_no_other_way_to_write():
    """What the library leaves for a user goes through `atomic_write`; what `testing` writes and the note in a run's
    lock do not"""
    package = Path(__file__).parent.parent / 'ctxseg_nb'
    words = 'savefig(', '.write_text(', '.write_bytes(', "'w'", "'wb'", '.to_csv(', 'np.save(', 'im.save('
    found = []
    for file in package.rglob('*.py'):
        if file.parent.name == 'testing':
            continue
        lines, inside = file.read_text().splitlines(), -1
        for line in lines:
            depth = len(line) - len(line.lstrip())
            if inside >= 0 and line.strip() and depth <= inside:
                inside = -1
            if 'atomic_write(' in line and 'with ' in line:
                inside = depth
            elif inside < 0 and any(w in line for w in words) and 'self.about.' not in line:
                found.append(f'{file.name}: {line.strip()}')
    assert not found


# ---- Nothing in a file is executed, and no other file is opened


class Touch:
    "Pickled, it makes a file when it is read"

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (open, (str(self.file), 'w'))


def require_export():
    "Skip where the packages for ONNX are missing, or PyTorch is too old to export"
    for package in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(package)
    if tuple(map(int, torch.__version__.split('.')[:2])) < (2, 9):
        pytest.skip('export needs PyTorch 2.9 or newer')


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    "A folder with a small model as .pt2 and .onnx, and the model"
    require_export()
    folder = tmp_path_factory.mktemp('exported')
    torch.manual_seed(0)
    net = create_model('gap', 2, backbone_options=dict(width=2), width=2).eval()
    graph = trace_model(net)
    export_program(graph, folder / 'gap.pt2', 'ab')
    export_onnx(graph, folder / 'gap.onnx', 'ab', size=(20, 30))
    return folder, net


@pytest.fixture
def evil(exported, tmp_path):
    "A .pt2 file whose example inputs are a pickle that makes a file; and that file"
    made, file, pickled = tmp_path / 'made', tmp_path / 'evil.pt2', io.BytesIO()
    torch.save(Touch(made), pickled)
    with zipfile.ZipFile(exported[0] / 'gap.pt2') as sound, zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as out:
        for entry in sound.infolist():
            out.writestr(entry.filename, pickled.getvalue() if 'sample_inputs' in entry.filename else sound.read(entry))
    return file, made


def test_pickle_in_pt2_is_not_executed(evil):
    file, made = evil
    with pytest.raises(ValueError, match='evil.pt2: reading a .pt2 file can execute code .*trust=True'):
        load_exported(file)
    assert not made.exists()


def test_malicious_file_is_one(evil):
    """The file of the test before does what it is meant to when it is trusted; a PyTorch that refuses it would be
    welcome"""
    file, made = evil
    try:
        load_exported(file, trust=True)
    except ValueError:
        pass
    if not made.exists():
        pytest.skip(f'PyTorch {torch.__version__} does not execute pickles in .pt2 files')


@pytest.mark.parametrize('words', [('predict', 'photo.png'), ('evaluate',)])
def test_command_line_wants_trust(evil, tmp_path, capsys, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    Image.new('RGB', (20, 20)).save('photo.png')
    given = (words[0], str(evil[0])) if words[0] == 'evaluate' else (*words, '--model', str(evil[0]))
    assert main(list(given)) == 2
    said = capsys.readouterr().err
    assert '--trust' in said and len(said.splitlines()) == 1 and not evil[1].exists()


@pytest.mark.parametrize('suffix', ['.onnx', '.safetensors', '.json'])
@pytest.mark.parametrize('kind', ['archive', 'pickle'])
def test_pickles_under_another_name(evil, tmp_path, suffix, kind):
    file = tmp_path / f'model{suffix}'
    file.write_bytes(evil[0].read_bytes() if kind == 'archive' else pickle.dumps(Touch(evil[1])))
    with pytest.raises((ValueError, FileNotFoundError), match='model'):
        load_exported(file)
    assert not evil[1].exists()


def test_trusted_pt2_is_read(exported):
    folder, net = exported
    x = torch.randn(1, 3, 9, 14)
    assert torch.equal(load_exported(folder / 'gap.pt2', trust=True)[0](x), net(x).detach())


@pytest.mark.parametrize('location', ['weights.bin', '../weights.bin', '/dev/zero', '/etc/hostname'])
@pytest.mark.parametrize('where', ['initializer', 'attribute', 'function'])
def test_onnx_opens_no_other_file(exported, tmp_path, monkeypatch, location, where):
    onnx = pytest.importorskip('onnx')
    monkeypatch.chdir(tmp_path)
    np.zeros(1000, np.float32).tofile('weights.bin')
    model = onnx.load(exported[0] / 'gap.onnx')
    tensor = onnx.TensorProto(
        name='far', data_type=onnx.TensorProto.FLOAT, dims=[1], data_location=onnx.TensorProto.EXTERNAL
    )
    tensor.external_data.add(key='location', value=location)
    constant = onnx.helper.make_node('Constant', [], ['far'], value=tensor)
    if where == 'initializer':
        model.graph.initializer.append(tensor)
    elif where == 'attribute':
        model.graph.node.append(constant)
    else:
        model.functions.append(
            onnx.helper.make_function('own', 'f', [], ['far'], [constant], [onnx.helper.make_opsetid('', 18)])
        )
    (tmp_path / 'far.onnx').write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=f"far.onnx: expected all weights in the file itself, .*{location}"):
        load_exported(tmp_path / 'far.onnx')


def test_onnx_with_unknown_operator(exported, tmp_path):
    onnx = pytest.importorskip('onnx')
    model = onnx.load(exported[0] / 'gap.onnx')
    model.graph.node[0].op_type, model.graph.node[0].domain = 'Own', 'somebody.else'
    model.opset_import.append(onnx.helper.make_opsetid('somebody.else', 1))
    (tmp_path / 'own.onnx').write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match='own.onnx: expected an ONNX file that ONNX Runtime can run'):
        load_exported(tmp_path / 'own.onnx')


# ---- Models come back as they were


def small(name, n_classes=3, **options):
    return create_model(name, n_classes, backbone_options=dict(width=4), **options)


@torch.no_grad()
def stirred(net):
    "The same network with other numbers everywhere, statistics and memories too"
    for t in net.state_dict().values():
        if t.dtype == torch.bool:
            t.fill_(True)
        elif t.is_floating_point():
            t.add_(0.05 * torch.rand_like(t))
        else:
            t.add_(3)
    return net


def same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(a.values(), b.values()))


@pytest.mark.parametrize('name', MODELS)
def test_round_trip(name, tmp_path):
    "Every number comes back, from the one file, whichever name it is asked for by"
    net, x = stirred(small(name, aux=True)), torch.randn(2, 3, 17, 24)
    save_segmentor(net, tmp_path / 'net.v1', 'abc', size=(np.int64(17), 24))
    (tmp_path / 'net.v1.json').unlink()
    for end in ('', '.json', '.safetensors'):
        again, info = load_segmentor(tmp_path / f'net.v1{end}')
    assert same_state(again, net) and again.config == net.config and not again.training
    assert (info['class_names'], info['size']) == (['a', 'b', 'c'], [17, 24])
    with torch.no_grad():
        assert torch.equal(again(x), net.eval()(x))


@pytest.mark.parametrize('name', MODELS)
def test_state_is_whole(name):
    """What training changes without gradients is in `state_dict`: another network with it gives the same logits.
    And no module keeps a tensor that `.to()` would leave behind"""
    net, other = small(name).train(), small(name)
    out, target = net(torch.randn(2, 3, 17, 24)), torch.randint(3, (2, 17, 24))
    for term in net.loss_terms():
        term.function(out, target)
    other.load_state_dict(net.state_dict())
    x = torch.randn(1, 3, 17, 24)
    with torch.no_grad():
        assert torch.equal(net.eval()(x), other.eval()(x))
    assert not [f'{n}.{k}' for n, m in net.named_modules() for k, v in vars(m).items() if isinstance(v, torch.Tensor)]


FRESH = '''
import sys, torch
from ctxseg_nb.evaluation.export import load_exported
assert not [m for m in sys.modules if m.startswith('ctxseg_nb.models.deepcrf')], 'imported too early'
for path in sys.argv[1:]:
    net, _ = load_exported(path)
    torch.manual_seed(0)
    with torch.no_grad(): torch.save(net(torch.randn(1, 3, 17, 24)), f'{path}.logits')
'''


def test_fresh_process(tmp_path):
    "A model of each module, and one on each backbone of our own, in a process that has imported none of them"
    nets = {n: small(n) for n in ('fcn', 'pspnet', 'encnet', 'cfnet', 'mcibi', 'deepcrf', 'guided')}
    nets |= dict(
        featmap_nets=create_model('fcn', 3, 'featmap_nets', dict(nets=1, block_width=4, width=4)),
        squeeze=create_model('fcn', 3, 'squeezenet1_0'),
    )
    for name, net in nets.items():
        save_segmentor(stirred(net), tmp_path / name, 'abc')
    environment = os.environ | dict(PYTHONPATH=str(Path(__file__).parent.parent), OMP_NUM_THREADS='1')
    subprocess.run([sys.executable, '-c', FRESH, *(str(tmp_path / n) for n in nets)], check=True, env=environment)
    for name, net in nets.items():
        torch.manual_seed(0)
        with torch.no_grad():
            assert torch.equal(net.eval()(torch.randn(1, 3, 17, 24)), torch.load(tmp_path / f'{name}.logits')), name


def older(folder, card_text):
    "A file of weights without a card, and the JSON beside it, as older versions wrote them"
    with open_tensors(folder / 'a.safetensors') as file:
        tensors = {k: file.get_tensor(k) for k in file.keys()}
    (folder / 'older.safetensors').write_bytes(save(tensors))
    (folder / 'older.json').write_text(card_text)
    return folder / 'older'


@pytest.fixture
def saved(tmp_path):
    "A folder with the model a.safetensors, and the model"
    net = stirred(small('gap', width=4))
    save_segmentor(net, tmp_path / 'a', ['sky', 'sea', 'land'], size=(17, 24))
    return tmp_path, net


def test_older_form_is_read(saved):
    folder, net = saved
    again, info = load_segmentor(older(folder, (folder / 'a.json').read_text()))
    assert same_state(again, net) and info['class_names'] == ['sky', 'sea', 'land']
    (folder / 'older.json').unlink()
    with pytest.raises(
        FileNotFoundError, match='older.json: no such file, and .*older.safetensors itself holds no model card'
    ):
        load_segmentor(folder / 'older')


def test_card_in_the_file_counts(saved):
    folder, net = saved
    (folder / 'a.json').write_text('something else')
    assert same_state(load_segmentor(folder / 'a')[0], net)


def _save_often(path, n):
    for i in range(n):
        width = 2 + 2 * (i % 2)
        net = small('fcn', width, width=width)
        torch.nn.init.constant_(net.head.classify[1].bias, width)
        save_segmentor(net, path, [f'{width}'] * width, stats=([width] * 3, [1.0] * 3))


def test_reader_never_sees_two_models_mixed(tmp_path):
    "A writer alternates two models in one path: what is loaded is always one of them"
    _save_often(tmp_path / 'm', 1)
    writer = multiprocessing.get_context('fork').Process(target=_save_often, args=(tmp_path / 'm', 200))
    writer.start()
    seen = set()
    while writer.is_alive() or not seen:
        net, info = load_segmentor(tmp_path / 'm')
        width = len(info['class_names'])
        assert (
            net.config['n_classes'] == width
            and info['class_names'] == [f'{width}'] * width
            and info['stats'][0] == [width] * 3
        )
        assert net.head.classify[1].bias.tolist() == [width] * width
        seen.add(width)
    writer.join()
    assert writer.exitcode == 0 and names(tmp_path) == ['m.json', 'm.safetensors']


def test_file_replaced_between_its_head_and_its_values(tmp_path, monkeypatch):
    "safetensors opens a path twice; a model that replaces the file in between is read whole"
    for name, width in ('m', 2), ('new', 4):
        net = small('fcn', width, width=width)
        torch.nn.init.constant_(net.head.classify[1].bias, width)
        save_segmentor(net, tmp_path / name, [f'{width}'] * width)
    open_values = torch.UntypedStorage.from_file

    def replace_first(*args, **kwargs):
        if (tmp_path / 'new.safetensors').exists():
            os.replace(tmp_path / 'new.safetensors', tmp_path / 'm.safetensors')
        return open_values(*args, **kwargs)

    monkeypatch.setattr(torch.UntypedStorage, 'from_file', replace_first)
    net, info = load_segmentor(tmp_path / 'm')
    width = len(info['class_names'])
    assert info['class_names'] == [f'{width}'] * width and net.head.classify[1].bias.tolist() == [width] * width


# ---- What is wrong in a file is said in one line

WRONG_CARDS = [  # path of the entry, its value ('del': it is missing), what the message has to say
    ('format', 9, 'format 1, found 9'),
    ('format', 'del', 'format 1, found None'),
    ('class_names', 'del', 'class_names: expected a list of 3 class names, found no such entry'),
    ('class_names', None, 'class_names: expected a list of 3'),
    ('class_names', 'abc', 'class_names'),
    ('class_names', ['a', 'b'], 'class_names: expected a list of 3 class names, found a list of 2'),
    ('class_names', ['a', 'b', None], 'class_names'),
    ('class_names', ['a', 'b', 3], 'class_names'),
    ('class_names', ['a', 'b', ''], 'class_names'),
    ('class_names', ['a', 'b', '\x1b[31mred'], 'class_names'),
    ('class_names', ['a', 'b', 'x' * 10**6], 'class_names'),
    ('palette', ['#ffffff'] * 2, 'palette: expected a list of 3 colours'),
    ('palette', ['#fff'] * 3, 'palette'),
    ('palette', ['white'] * 3, 'palette'),
    ('palette', [[1, 2, 3]] * 3, 'palette'),
    ('palette', None, 'palette'),
    ('palette', 'del', 'palette'),
    ('mean', [float('nan')] * 3, 'NaN'),
    ('mean', [0, 0], 'mean: expected three numbers'),
    ('mean', ['0'] * 3, 'mean'),
    ('mean', [True] * 3, 'mean'),
    ('mean', [1e9] * 3, 'mean'),
    ('std', [1, 1, 0], 'std: expected three numbers above 0'),
    ('std', [-1] * 3, 'std'),
    ('std', [float('inf')] * 3, 'Infinity'),
    ('std', [1e-300] * 3, 'std'),
    ('std', 1, 'std'),
    ('size', [0, 5], 'size: expected null, or height and width'),
    ('size', [-3, 5], 'size'),
    ('size', [10**9, 5], 'size'),
    ('size', [5], 'size'),
    ('size', 'big', 'size'),
    ('size', [5.0, 5.0], 'size'),
    ('config', None, 'config: expected how the model is built, found None'),
    ('config', 'del', 'config'),
    ('config', [], 'config'),
    ('config.model', 'gapp', "unknown model 'gapp'; did you mean gap"),
    ('config.model', ['gap'], 'config: model: expected a name'),
    ('config.model', 'del', 'model'),
    ('config.n_classes', 0, 'n_classes'),
    ('config.n_classes', -1, 'n_classes'),
    ('config.n_classes', 10**9, 'n_classes'),
    ('config.n_classes', True, 'n_classes'),
    ('config.n_classes', 3.0, 'n_classes'),
    ('config.n_classes', '3', 'n_classes'),
    ('config.n_classes', 4, 'class_names: expected a list of 4'),
    ('config.n_classes', 10**400, 'n_classes'),
    ('config.backbone', 'tinny', "unknown backbone 'tinny'; did you mean tiny"),
    ('config.backbone', 'hf-hub:timm/resnet18.a1_in1k', 'unknown backbone'),
    ('config.backbone', 'local-dir:/tmp', 'unknown backbone'),
    ('config.backbone', '../tiny', 'unknown backbone'),
    ('config.backbone', None, 'backbone: expected a name'),
    ('config.backbone_options', None, 'backbone_options'),
    ('config.backbone_options', {'pretrained': True}, 'none that opens a file or downloads'),
    ('config.backbone_options', {'weights': 'imagenet'}, 'none that opens a file'),
    ('config.backbone_options', {'weights': '/etc/passwd'}, 'none that opens a file'),
    ('config.backbone_options', {'checkpoint_path': 'x'}, "the backbone tiny has no option 'checkpoint_path'"),
    ('config.backbone_options', {'width': 10**5}, 'does not fit'),
    ('config.backbone_options', {'width': -1}, 'width: expected an integer of at least 1, found -1'),
    ('config.backbone_options', {'width': 10**12}, 'backbone_options'),
    ('config.backbone_options', {'output_stride': 3}, 'output_stride'),
    ('config.aux', 'yes', 'aux: expected true or false'),
    ('config.aux', None, 'aux'),
    ('config.aux', True, 'does not fit'),
    ('config.options', {'width': 10**6}, 'does not fit'),
    ('config.options', {'width': 0}, 'width: expected an integer'),
    ('config.options', {'widht': 4}, "no option 'widht'; there are width"),
    ('config.options', {'channels': [4]}, "the model gap has no option 'channels'"),
    ('config.options', {'name': 'fcn'}, 'config'),
    ('config.options', {'aux': True}, 'config'),
    ('config.options', {'dropout': 2}, 'dropout'),
    ('config.options', {'dropout': float('nan')}, 'NaN'),
    ('config.options', {'width': 1e300}, 'options'),
    ('config.options', [], 'options'),
    ('config.trust', True, 'found .trust'),
]


@pytest.mark.parametrize(
    'entry, value, said, form',
    [(*wrong, 'in the file') for wrong in WRONG_CARDS] + [(*wrong, 'beside it') for wrong in WRONG_CARDS[::12]],
    ids=lambda v: str(v)[:30],
)
def test_wrong_card(saved, monkeypatch, entry, value, said, form):
    folder, _ = saved
    for opener in (
        'socket.socket.connect',
        'ctxseg_nb.models.backbones.load_tensors',
        'ctxseg_nb.models.deepcrf.read_tensors',
    ):
        monkeypatch.setattr(opener, lambda *a, **k: pytest.fail('something was downloaded or opened'))
    card = json.loads((folder / 'a.json').read_text())
    *way, last = entry.split('.')
    inside = card if not way else card[way[0]]
    if value == 'del':
        del inside[last]
    else:
        inside[last] = value
    path = older(folder, json.dumps(card))
    if form == 'in the file':
        with open_tensors(folder / 'older.safetensors') as file:
            tensors = {k: file.get_tensor(k) for k in file.keys()}
        (folder / 'older.safetensors').write_bytes(save(tensors, {KEY: (folder / 'older.json').read_text()}))
        (folder / 'older.json').unlink()
    with pytest.raises(ValueError, match=said) as e:
        load_segmentor(path)
    assert f'{path}.' in str(e.value) and len(str(e.value)) < 600 and '\n' not in str(e.value)


@pytest.mark.parametrize(
    'text', ['', '{"format": 1', '[]', 'null', '1', '[' * 10**5, '{"format": ' + '1' * 5000 + '}', '\0']
)
def test_card_that_is_none(saved, text):
    with pytest.raises(ValueError, match='older.json: expected a model card') as e:
        load_segmentor(older(saved[0], text))
    assert len(str(e.value)) < 400


def test_card_that_is_no_text(saved):
    path = older(saved[0], '')
    (saved[0] / 'older.json').write_bytes(b'\xff\xfe{}')
    with pytest.raises(ValueError, match='older.json: expected a model card in JSON'):
        load_segmentor(path)


def rewritten(folder, change):
    "The file again, with `change`d tensors"
    with open_tensors(folder / 'a.safetensors') as file:
        tensors, metadata = {k: file.get_tensor(k) for k in file.keys()}, file.metadata()
    change(tensors)
    (folder / 'b.safetensors').write_bytes(save(tensors, metadata))
    return folder / 'b'


BIAS = 'head.classify.1.bias'


@pytest.mark.parametrize(
    'change, said',
    [
        (lambda t: t[BIAS].fill_(torch.nan), f'{BIAS}: expected finite numbers, found 3 of 3 that are nan or infinite'),
        (lambda t: t[BIAS][0].fill_(-torch.inf), f'{BIAS}: expected finite numbers, found 1 of 3'),
        (
            lambda t: t.update({BIAS: torch.tensor([1e300, 0, 0], dtype=torch.float64)}),
            f'{BIAS}: expected finite numbers',
        ),
        (lambda t: t.update({BIAS: t[BIAS] > 0}), f'{BIAS}: expected .3,., found .3,. BOOL'),
        (lambda t: t.update({BIAS: t[BIAS].long()}), f'{BIAS}: expected .3,., found .3,. I64'),
        (lambda t: t.update({BIAS: t[BIAS][:2]}), f'{BIAS}: expected .3,., found .2,.'),
        (lambda t: t.update({BIAS: t[BIAS][None]}), f'{BIAS}: expected .3,., found .1, 3.'),
        (
            lambda t: t.update({'head.norm.num_batches_tracked': torch.tensor(1.0)}),
            'num_batches_tracked: expected .. I64, found ..',
        ),
        (lambda t: t.pop(BIAS), f'{BIAS}: expected .3,., found no such tensor'),
        (lambda t: t.update(more=torch.zeros(2)), 'more: expected no such tensor, found .2,.'),
    ],
)
def test_wrong_tensors(saved, change, said):
    path = rewritten(saved[0], change)
    with pytest.raises(ValueError, match=f'b.safetensors.*{said}'):
        load_segmentor(path)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_precision_is_read(saved, dtype):
    path = rewritten(saved[0], lambda t: t.update({BIAS: torch.tensor([0.5, 0, -2], dtype=dtype)}))
    assert load_segmentor(path)[0].head.classify[1].bias.tolist() == [0.5, 0, -2]


@pytest.mark.parametrize('cut', [0, 4, 8, 100, 2000, -1])
def test_truncated_file(saved, cut):
    (saved[0] / 'b.safetensors').write_bytes((saved[0] / 'a.safetensors').read_bytes()[:cut])
    with pytest.raises(ValueError, match='b.safetensors: expected a safetensors file, found a truncated or other one'):
        load_segmentor(saved[0] / 'b')


@pytest.mark.parametrize(
    'said, change',
    [
        ('class_names: expected a list of 3 class names', dict(class_names='ab')),
        ('class_names', dict(class_names=['a', 'b', None])),
        ('palette', dict(palette=np.zeros((2, 3), np.uint8))),
        ('std: expected three numbers above 0', dict(stats=([0] * 3, [0] * 3))),
        ('mean', dict(stats=([np.nan] * 3, [1] * 3))),
        ('size', dict(size=(0, 3))),
        ('size', dict(size=(3,))),
    ],
)
def test_save_refuses_what_cannot_be_read(saved, said, change):
    folder, net = saved
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    with pytest.raises(ValueError, match=f'a: {said}'):
        save_segmentor(net, folder / 'a', **dict(class_names='abc') | change)
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before


def test_full_disk_leaves_the_model_that_was_there(saved, monkeypatch):
    folder, _ = saved
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    monkeypatch.setattr(Path, 'write_bytes', is_full)
    with pytest.raises(OSError, match='cannot write .*a.safetensors: No space left'):
        save_segmentor(small('fcn'), folder / 'a', 'xyz')
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before


# ---- Options that cannot be


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize(
    'options',
    [
        dict(width=0),
        dict(width=-1),
        dict(width=2.5),
        dict(width='8'),
        dict(width=True),
        dict(dropout=2),
        dict(dropout=-0.1),
        dict(dropout=float('nan')),
        dict(widht=8),
        dict(no_such=1),
    ],
    ids=str,
)
def test_impossible_options(name, options):
    option = next(iter(options))
    with pytest.raises(ValueError, match=option):
        create_model(name, 3, **options)


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('n_classes', [0, -1, 2.5, '3', None, True])
def test_impossible_number_of_classes(name, n_classes):
    with pytest.raises(ValueError, match='n_classes: expected an integer of at least 1'):
        create_model(name, n_classes)


@pytest.mark.parametrize(
    'name, options, said',
    [
        ('fcn', dict(dilations=(1, 0)), 'dilations'),
        ('pspnet', dict(bins=()), 'bins'),
        ('pspnet', dict(bins=(1, -2)), 'bins'),
        ('pspnet', dict(width=3), 'bins: expected from 1 to 3'),
        ('deeplabv3', dict(rates=(0,)), 'rates'),
        ('ocrnet', dict(width=1), 'width: expected at least 2'),
        ('mcibi', dict(width=1), 'width: expected at least 2'),
        ('encnet', dict(n_codes=-1), 'n_codes'),
        ('encnet', dict(aggregate='max'), 'aggregate'),
        ('cfnet', dict(n_heads=0), 'n_heads'),
        ('cfnet', dict(width=9), 'multiple'),
        ('cfnet', dict(dilation=0), 'dilation'),
        ('cfnet_pool', dict(local=True), 'acf: expected True'),
        ('guided', dict(fc=0), 'fc:'),
        ('guided', dict(joint=-1), 'joint'),
        ('guided', dict(pooled=0), 'pooled'),
        ('guided', dict(fc_dropout=1.5), 'fc_dropout'),
        ('deepcrf', dict(sample=0), 'sample'),
        ('deepcrf', dict(n_iters=-1), 'n_iters'),
        ('fcn', dict(backbone_options=dict(width=0)), 'width'),
        ('fcn', dict(backbone_options=dict(widht=8)), "the backbone tiny has no option 'widht'"),
        (
            'fcn',
            dict(backbone='resnet18', backbone_options=dict(stride=8)),
            "the backbone resnet18 has no option 'stride'; there are output_stride, pretrained",
        ),
        ('fcn', dict(backbone='featmap_nets', backbone_options=dict(nets=0)), 'nets'),
        ('fcn', dict(backbone='featmap_nets', backbone_options=dict(windows=(4,))), 'windows: expected odd'),
        ('fcn', dict(backbone='featmap_nets', backbone_options=dict(scales=(0,))), 'scales'),
        ('fcn', dict(backbone='featmap_nets', backbone_options=dict(widht=1)), 'widht'),
        ('fcn', dict(backbone='featmap_nets', backbone_options=dict(block_width=0)), 'block_width'),
        ('fcn', dict(width=torch.tensor(8)), 'width'),
    ],
)
def test_other_impossible_options(name, options, said):
    with pytest.raises(ValueError, match=said):
        create_model(name, 3, **options)


# ---- Graphs of every model

EXPORTED = [*MODELS, 'guided with its field', 'fcn on resnet10t']


@pytest.mark.parametrize('name', EXPORTED)
def test_exported_as_both_formats(name, tmp_path):
    """Traced once, written as ONNX and for torch.export, read back, and compared on sizes and batches that no other
    check has seen"""
    require_export()
    if name == 'deepcrf':
        net, fixed = deepcrf(3, shared_features=True, block_width=4, width=4, backbone_options=dict(width=4)), (13, 20)
    elif name == 'guided with its field':
        net, fixed = CRFWrapper(small('guided', width=8), GuidanceCRF(4, n_iters=1)), None
    elif name == 'fcn on resnet10t':
        net, fixed = create_model('fcn', 3, 'resnet10t', width=8), None
    else:
        net, fixed = small(name), None
    graph = trace_model(stirred(net).eval(), fixed)
    export_program(graph, tmp_path / 'a.pt2', 'abc')
    export_onnx(graph, tmp_path / 'a.onnx', 'abc')
    for batch, size in ((1, (41, 59)), (4, (21, 34))):
        x = torch.randn(batch, 3, *(fixed or size))
        with torch.no_grad():
            expected = net(x)
        for file in ('a.pt2', 'a.onnx'):
            run, info = load_exported(tmp_path / file, trust=True)
            assert info['fixed'] == (fixed and list(fixed)) and (run(x) - expected).abs().max() < 1e-4 * max(
                1, expected.abs().max()
            )
