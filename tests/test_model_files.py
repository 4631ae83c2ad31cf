"Files that the library writes and reads: whole or not at all, what is in them is checked, and nothing in them is executed."
import errno, json, multiprocessing, os, signal, stat, subprocess, sys
from pathlib import Path
import matplotlib.pyplot as plt, numpy as np, pytest
from ctxseg_nb.core import atomic_write, write_figure, write_json


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
