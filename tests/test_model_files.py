"Files that the library writes and reads: whole or not at all, what is in them is checked, and nothing in them is executed."
import errno, io, json, multiprocessing, os, pickle, signal, stat, subprocess, sys, zipfile
from pathlib import Path
import matplotlib.pyplot as plt, numpy as np, pytest, torch
from PIL import Image
from ctxseg_nb.cli import main
from ctxseg_nb.core import atomic_write, write_figure, write_json
from ctxseg_nb.inference.export import export_onnx, export_program, load_exported, trace_model
from ctxseg_nb.models.segmentor import create_model, save_model


# ---- Writing a file whole or not at all

def write(path, text='new'):
    with atomic_write(path) as tmp: tmp.write_text(text)

def names(folder): return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize('mask, mode', [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_new_file_respects_umask(tmp_path, mask, mode):
    before = os.umask(mask)
    try: write(tmp_path/'a.txt')
    finally: os.umask(before)
    assert stat.S_IMODE((tmp_path/'a.txt').stat().st_mode) == mode


def test_replaced_file_keeps_its_permissions(tmp_path):
    (tmp_path/'a.txt').write_text('old')
    (tmp_path/'a.txt').chmod(0o640)
    write(tmp_path/'a.txt')
    assert (tmp_path/'a.txt').read_text() == 'new' and stat.S_IMODE((tmp_path/'a.txt').stat().st_mode) == 0o640


@pytest.mark.parametrize('there', [True, False])
def test_symbolic_link_stays_and_its_target_is_written(tmp_path, there):
    (tmp_path/'far').mkdir()
    if there: (tmp_path/'far'/'a.txt').write_text('old')
    (tmp_path/'link.txt').symlink_to(tmp_path/'far'/'a.txt')
    write(tmp_path/'link.txt')
    assert (tmp_path/'link.txt').is_symlink() and (tmp_path/'far'/'a.txt').read_text() == 'new'
    assert names(tmp_path) == ['far', 'link.txt'] and names(tmp_path/'far') == ['a.txt']


KILLED = '''
import os, signal, sys
from ctxseg_nb.core import atomic_write
with atomic_write(sys.argv[1]) as tmp:
    tmp.write_text('half')
    os.kill(os.getpid(), signal.SIGKILL)
'''

def test_temporary_files_of_killed_writers_do_not_pile_up(tmp_path):
    (tmp_path/'a.txt').write_text('old')
    environment = os.environ | dict(PYTHONPATH=str(Path(__file__).parent.parent))
    done = subprocess.run([sys.executable, '-c', KILLED, tmp_path/'a.txt'], env=environment)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path/'a.txt').read_text() == 'old' and len(names(tmp_path)) == 2
    write(tmp_path/'a.txt')
    assert (tmp_path/'a.txt').read_text() == 'new' and names(tmp_path) == ['a.txt']


def _write_often(path, text, n):
    for _ in range(n): write(path, text*10000)

def test_two_writers_and_a_reader(tmp_path):
    write(tmp_path/'a.txt', 'a'*10000)
    fork = multiprocessing.get_context('fork')
    writers = [fork.Process(target=_write_often, args=(tmp_path/'a.txt', letter, 100)) for letter in 'ab']
    for w in writers: w.start()
    while any(w.is_alive() for w in writers): assert (tmp_path/'a.txt').read_text() in ('a'*10000, 'b'*10000)
    for w in writers: w.join()
    assert [w.exitcode for w in writers] == [0, 0] and names(tmp_path) == ['a.txt']


def is_full(*_): raise OSError(errno.ENOSPC, 'No space left on device')

def as_nobody(test):
    "Run `test()` as a user for whom read-only means read-only, in a child process; the text of its OSError"
    def run(queue):
        if os.getuid() == 0: os.setuid(65534)
        try: test()
        except OSError as e: queue.put(str(e))
        else: queue.put('no error')
    fork = multiprocessing.get_context('fork')
    queue = fork.SimpleQueue()
    child = fork.Process(target=run, args=(queue,))
    child.start(); child.join()
    return queue.get()


@pytest.mark.parametrize('path, why', [('folder', 'expected a file, found a folder'), ('fifo', 'found a folder or a device'),
                                       ('file/a.txt', ''), ('a'*300, ''), ('loop', '')])
def test_places_that_cannot_be_written(tmp_path, path, why):
    (tmp_path/'folder').mkdir()
    (tmp_path/'file').write_text('old')
    (tmp_path/'loop').symlink_to(tmp_path/'loop')
    os.mkfifo(tmp_path/'fifo')
    before = names(tmp_path)
    with pytest.raises(OSError, match=f'cannot write .*{path}: .*{why}'): write(tmp_path/path)
    assert names(tmp_path) == before and (tmp_path/'file').read_text() == 'old'


def test_missing_folders_are_made(tmp_path):
    write(tmp_path/'a'/'b'/'c.txt')
    assert (tmp_path/'a'/'b'/'c.txt').read_text() == 'new'


@pytest.mark.parametrize('locked', ['folder', 'file'])
def test_read_only(tmp_path, locked):
    for p in (tmp_path, *tmp_path.parents[:3]): p.chmod(0o755)   # pytest's folders are for their owner only
    (tmp_path/'a.txt').write_text('old')
    if locked == 'file': tmp_path.chmod(0o777)
    else: tmp_path.chmod(0o555)
    (tmp_path/'a.txt').chmod(0o444 if locked == 'file' else 0o666)
    assert 'cannot write' in (found := as_nobody(lambda: write(tmp_path/'a.txt'))) and 'a.txt: ' in found
    assert names(tmp_path) == ['a.txt'] and (tmp_path/'a.txt').read_text() == 'old'


@pytest.mark.parametrize('step', ['write_text', 'os.fsync', 'replace'])
def test_full_disk(tmp_path, monkeypatch, step):
    (tmp_path/'a.txt').write_text('old')
    monkeypatch.setattr(*(('os.fsync',) if step == 'os.fsync' else (Path, step)), is_full)
    with pytest.raises(OSError, match='cannot write .*a.txt: No space left') as e: write(tmp_path/'a.txt')
    assert e.value.errno == errno.ENOSPC
    assert names(tmp_path) == ['a.txt'] and (tmp_path/'a.txt').read_text() == 'old'


def test_error_without_number_names_the_file(tmp_path):
    with pytest.raises(OSError, match='cannot write .*a.txt: cannot write mode RGBA as JPEG'), atomic_write(tmp_path/'a.txt'):
        raise OSError('cannot write mode RGBA as JPEG')


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path/'a.json', dict(a=float('nan'), b=[np.float64('inf'), (1, -np.inf)], c='NaN', d=np.float64(.5)))
    def refuse(word): raise AssertionError(f'{word} is not JSON')
    assert json.loads((tmp_path/'a.json').read_text(), parse_constant=refuse) == dict(a=None, b=[None, [1, None]], c='NaN', d=.5)


def test_figures_are_replaced_whole(tmp_path, monkeypatch):
    (tmp_path/'a.png').write_text('old')
    figure = plt.figure()
    monkeypatch.setattr(figure, 'savefig', lambda *_, **__: is_full())
    with pytest.raises(OSError, match='cannot write .*a.png: No space left'): write_figure(tmp_path/'a.png', figure)
    assert names(tmp_path) == ['a.png'] and (tmp_path/'a.png').read_text() == 'old'
    write_figure(tmp_path/'a.png', plt.figure())
    assert (tmp_path/'a.png').read_bytes()[1:4] == b'PNG' and not plt.get_fignums()


def test_no_other_way_to_write():
    "What the library leaves for a user goes through `atomic_write`; temporary folders and miniatures for tests do not"
    package, free = Path(__file__).parent.parent/'ctxseg_nb', ('miniature', 'distributed', 'frozen', 'rooms', 'scenery', 'pascal', 'coco', 'people')
    words = 'savefig(', '.write_text(', '.write_bytes(', "'w'", "'wb'", '.to_csv(', 'np.save(', 'im.save('
    found = []
    for file in package.rglob('*.py'):
        lines, inside = file.read_text().splitlines(), -1
        for line in lines:
            depth = len(line) - len(line.lstrip())
            if inside >= 0 and line.strip() and depth <= inside: inside = -1
            if 'atomic_write(' in line and 'with ' in line: inside = depth
            elif inside < 0 and file.stem not in free and any(w in line for w in words): found.append(f'{file.name}: {line.strip()}')
    assert not found


# ---- Nothing in a file is executed, and no other file is opened

class Touch:
    "Pickled, it makes a file when it is read"
    def __init__(self, file): self.file = file
    def __reduce__(self): return (open, (str(self.file), 'w'))


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    "A folder with a small model as .pt2 and .onnx, and the model"
    pytest.importorskip('onnxruntime')
    folder = tmp_path_factory.mktemp('exported')
    torch.manual_seed(0)
    net = create_model('gap', 2, backbone_options=dict(width=2), width=2).eval()
    graph = trace_model(net)
    export_program(graph, folder/'gap.pt2', 'ab')
    export_onnx(graph, folder/'gap.onnx', 'ab', size=(20, 30))
    return folder, net


@pytest.fixture
def evil(exported, tmp_path):
    "A .pt2 file whose example inputs are a pickle that makes a file; and that file"
    made, file, pickled = tmp_path/'made', tmp_path/'evil.pt2', io.BytesIO()
    torch.save(Touch(made), pickled)
    with zipfile.ZipFile(exported[0]/'gap.pt2') as sound, zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as out:
        for entry in sound.infolist():
            out.writestr(entry.filename, pickled.getvalue() if 'sample_inputs' in entry.filename else sound.read(entry))
    return file, made


def test_pickle_in_pt2_is_not_executed(evil):
    file, made = evil
    with pytest.raises(ValueError, match='evil.pt2: reading a .pt2 file can execute code .*trust=True'): load_exported(file)
    assert not made.exists()


def test_malicious_file_is_one(evil):
    "The file of the test before does what it is meant to when it is trusted; a PyTorch that refuses it would be welcome"
    file, made = evil
    try: load_exported(file, trust=True)
    except ValueError: pass
    if not made.exists(): pytest.skip(f'PyTorch {torch.__version__} does not execute pickles in .pt2 files')


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
    file = tmp_path/f'model{suffix}'
    file.write_bytes(evil[0].read_bytes() if kind == 'archive' else pickle.dumps(Touch(evil[1])))
    with pytest.raises((ValueError, FileNotFoundError), match='model'): load_exported(file)
    assert not evil[1].exists()


def test_trusted_pt2_is_read(exported):
    folder, net = exported
    x = torch.randn(1, 3, 9, 14)
    assert torch.equal(load_exported(folder/'gap.pt2', trust=True)[0](x), net(x).detach())


@pytest.mark.parametrize('location', ['weights.bin', '../weights.bin', '/dev/zero', '/etc/hostname'])
@pytest.mark.parametrize('where', ['initializer', 'attribute', 'function'])
def test_onnx_opens_no_other_file(exported, tmp_path, monkeypatch, location, where):
    onnx = pytest.importorskip('onnx')
    monkeypatch.chdir(tmp_path)
    np.zeros(1000, np.float32).tofile('weights.bin')
    model = onnx.load(exported[0]/'gap.onnx')
    tensor = onnx.TensorProto(name='far', data_type=onnx.TensorProto.FLOAT, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key='location', value=location)
    constant = onnx.helper.make_node('Constant', [], ['far'], value=tensor)
    if where == 'initializer': model.graph.initializer.append(tensor)
    elif where == 'attribute': model.graph.node.append(constant)
    else: model.functions.append(onnx.helper.make_function('own', 'f', [], ['far'], [constant], [onnx.helper.make_opsetid('', 18)]))
    (tmp_path/'far.onnx').write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=f"far.onnx: expected all weights in the file itself, .*{location}"): load_exported(tmp_path/'far.onnx')


def test_onnx_with_unknown_operator(exported, tmp_path):
    onnx = pytest.importorskip('onnx')
    model = onnx.load(exported[0]/'gap.onnx')
    model.graph.node[0].op_type, model.graph.node[0].domain = 'Own', 'somebody.else'
    model.opset_import.append(onnx.helper.make_opsetid('somebody.else', 1))
    (tmp_path/'own.onnx').write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match='own.onnx: ONNX Runtime cannot run it'): load_exported(tmp_path/'own.onnx')
