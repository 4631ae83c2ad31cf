"What holds for all modules: public functions say what they return, classes are whole, imports go down."

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / 'ctxseg_nb'
MODULES = sorted(p for p in PACKAGE.rglob('*.py') if p.name not in ('__init__.py', '_modidx.py', 'all.py'))
DISPATCHED = 'encodes', 'decodes', 'show_batch', 'show_results'  # fastai reads their annotations and acts on them


def name_of(path):
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize('path', MODULES, ids=name_of)
def test_public_functions_say_what_they_return(path):
    tree = ast.parse(path.read_text(encoding='utf-8'))
    owners = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith('_'))]
    missing = [
        f.name
        for owner in owners
        for f in owner.body
        if isinstance(f, ast.FunctionDef) and not f.name.startswith('_') and f.name not in DISPATCHED and not f.returns
    ]
    assert not missing


@pytest.mark.parametrize('path', MODULES, ids=name_of)
def test_no_method_is_attached_to_a_class_afterwards(path):
    assert not re.findall(r'^[A-Z]\w*\.\w+ = ', path.read_text(encoding='utf-8'), flags=re.M)


@pytest.mark.parametrize(
    'path', [p for p in MODULES if p.stem != 'canvas'], ids=name_of
)  # brushes, called as what they draw
def test_public_definitions_have_a_docstring(path):
    tree = ast.parse(path.read_text(encoding='utf-8'))
    public = [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith('_')]
    long = [n for n in public if len(n.body) > 1 and n.name not in DISPATCHED]  # one line says what it does
    assert not [n.name for n in long if not ast.get_docstring(n)]


def test_imports_go_down_only():
    "cli → experiments → training, visualization → evaluation → models → data, crf → core; testing is never imported"
    floors = dict(core=0, crf=1, data=1, models=2, evaluation=3, training=4, visualization=4, experiments=5, cli=6)
    wrong = []
    for path in MODULES:
        own = name_of(path).removesuffix('.py').split('/')
        if own[0] == 'testing':
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            parts = node.module.split('.')
            if node.level:
                target = [*own[: len(own) - node.level], *parts]
            elif parts[0] == 'ctxseg_nb' and len(parts) > 1:
                target = parts[1:]
            else:
                continue
            if floors.get(target[0], 99) > floors[own[0]]:
                wrong.append(f'{name_of(path)} imports {".".join(target)}')
    assert not wrong
