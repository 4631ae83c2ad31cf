"Write a notebook as the README: without hidden cells and directives, with links that start at the top level."

import re
import sys
from pathlib import Path
from posixpath import dirname, join, normpath

from nbconvert import MarkdownExporter
from nbconvert.preprocessors import Preprocessor, RegexRemovePreprocessor

HIDDEN = r'\s*#\|\s*(hide|default_exp)\b'


class StripDirectives(Preprocessor):
    "Drop the lines that speak to nbdev"

    def preprocess(self, nb, resources):
        nb.metadata.language_info = {'name': 'python'}
        return super().preprocess(nb, resources)

    def preprocess_cell(self, cell, resources, index):
        if cell.cell_type == 'code':
            cell.source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M).strip('\n')
        return cell, resources


def relink(
    text: str,  # Markdown, links relative to `folder`
    folder: str,  # of the notebook, relative to the README
) -> str:  # Markdown, links relative to the README
    "Make relative links and images valid beside the README"

    def prefix(m):
        return m[1] + normpath(join(folder, m[2]))

    return re.sub(r'(\]\(|\bsrc="|\bhref=")(?![a-z]+:|[#/])([^)"\s]+)', prefix, text)


def readme(
    notebook: str,  # path, relative to the README's folder
) -> str:  # Markdown
    "The notebook's README; raises `ValueError` for an output that is not text"
    steps = [RegexRemovePreprocessor(patterns=[HIDDEN], enabled=True), StripDirectives(enabled=True)]
    text, resources = MarkdownExporter(preprocessors=steps).from_filename(notebook)
    if resources['outputs']:
        raise ValueError(f"{notebook}: outputs must be text, found {', '.join(resources['outputs'])}")
    return re.sub(r'\n{3,}', '\n\n', relink(text, dirname(notebook))).strip() + '\n'


if __name__ == '__main__':
    Path(sys.argv[2]).write_text(readme(sys.argv[1]), encoding='utf-8')
