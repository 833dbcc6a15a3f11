"""The site of the documents: `sphinx-build docs site` makes it."""

import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import haiku_state  # noqa: E402

project = 'haiku_state'
author = 'The haiku_state authors'
version = release = haiku_state.__version__

extensions = [
  'myst_parser',
  'sphinx.ext.autodoc',
  'sphinx.ext.napoleon',
  'sphinx.ext.viewcode',
]
source_suffix = {'.md': 'markdown', '.rst': 'restructuredtext'}
# The tree of pages; `index.md` is the first page, here and where code is read.
root_doc = 'contents'
exclude_patterns = ['_build']
html_theme = 'alabaster'

# Documents link to each other's headings, as they do where the code is read.
myst_heading_anchors = 3
# Links out of this folder are for readers of the code.
suppress_warnings = ['myst.xref_missing']

# Names in single backquotes are code.
default_role = 'code'
autodoc_default_options = {'members': True, 'show-inheritance': True}
autodoc_member_order = 'bysource'
autodoc_typehints = 'none'  # The signatures have them.
napoleon_use_rtype = False
# Autodoc finds the fields of modules itself.
napoleon_use_ivar = True


def setup(app):
  app.connect('source-read', lead_to_pages)
  # After napoleon, whose priority is 500.
  app.connect('autodoc-process-docstring', as_restructured_text, priority=900)


def lead_to_pages(app, name, source):
  """Has links to the README lead to its page in the site."""
  source[0] = source[0].replace('](../README.md)', '](first_program.md)')


def as_restructured_text(app, what, name, obj, options, lines):
  """Marks what docstrings have as plain text, and Sphinx would read.

  That is a star before a word, as in the shape (*batch, features), and a letter
  behind a backquote, as in `Module`s. What is between backquotes, or an
  example, stays as it is. A field whose default is a function of JAX is not
  described by that function.
  """
  if not str(getattr(obj, '__module__', 'haiku_state')).startswith('haiku_'):
    if what not in ('module', 'class', 'function'):
      lines.clear()
    return
  for i, line in enumerate(lines):
    if not line.lstrip().startswith(('>>>', '...')):
      lines[i] = ''.join(map(marked, re.split(r'(``.+?``|`[^`]+`)', line)))


def marked(part):
  if part.startswith('`'):
    return part
  part = re.sub(r'(?<![\\*\w])\*(?=\w)', r'\*', part)
  return re.sub(r'^(?=s\b)', r'\ ', part)
