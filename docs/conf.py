"""The site of the documents: `sphinx-build docs site` makes it."""

import pathlib
import re
import sys

DOCS = pathlib.Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / '_ext')]

import gallery  # noqa: E402

import haiku_state  # noqa: E402

project = 'haiku_state'
author = 'The haiku_state authors'
copyright = author
version = release = haiku_state.__version__

extensions = [
  'api',
  'mathml',
  'myst_parser',
  'sphinx.ext.autodoc',
  'sphinx.ext.autosummary',
  'sphinx.ext.napoleon',
  'sphinx.ext.viewcode',
  'sphinx_copybutton',
  'sphinx_gallery.gen_gallery',
]
source_suffix = {'.md': 'markdown', '.rst': 'restructuredtext'}
exclude_patterns = ['_build', '_ext']

# --- Looks -------------------------------------------------------------------

html_theme = 'furo'
html_title = 'haiku_state'
html_favicon = '_static/favicon.svg'
html_static_path = ['_static']
# The search finds names, too.
html_use_index = html_domain_indices = False
html_css_files = ['site.css']
html_math_renderer = 'mathml'
html_theme_options = {
  'light_logo': 'favicon.svg',
  'dark_logo': 'favicon.svg',
}
# Copies what one types, without prompts and what was printed.
copybutton_prompt_text = r'>>> |\.\.\. |\$ '
copybutton_prompt_is_regexp = True

# --- Documents ---------------------------------------------------------------

# Documents link to each other's headings, as they do where the code is read.
myst_heading_anchors = 3
# What is shown of the folder above, and the name of its page.
BROUGHT_IN = {
  'README': 'index',
  'CHANGELOG': 'changelog',
  'CONTRIBUTING': 'contributing',
}

# --- The API -----------------------------------------------------------------

# Names in single backquotes are code, and links where they are names of ours.
default_role = 'py:obj'
autodoc_default_options = {
  'members': True,
  'show-inheritance': True,
  'special-members': '__call__',
}
autodoc_member_order = 'bysource'
autodoc_typehints = 'none'  # The signatures have them.
autosummary_generate = False  # All of a family is on one page.
napoleon_use_rtype = False
napoleon_custom_sections = [('Fields', 'params_style')]
# One argument a line, where a signature is long.
maximum_signature_line_length = 68
toc_object_entries_show_parents = 'hide'

# --- The gallery -------------------------------------------------------------

# `-D plot_gallery=0` builds it without running the examples.
sphinx_gallery_conf = {
  'examples_dirs': '../examples',
  'gallery_dirs': 'gallery',
  'filename_pattern': '.*',
  'ignore_pattern': gallery.not_shown(),
  'reset_argv': 'gallery.arguments',
  'within_subsection_order': 'gallery.place',
  'abort_on_example_error': True,
  # Cells define functions; the last one runs them, with arguments.
  'notebook_extensions': set(),
  'download_all_examples': False,
  'write_computation_times': False,
  'show_signature': False,
  'min_reported_time': 5,
}


def setup(app):
  app.connect('source-read', bring_in_files)


def bring_in_files(app, name, source):
  """Shows files from outside of this folder, and leads links to their pages."""
  text = source[0]
  for file in BROUGHT_IN:
    if text.startswith(f'[{file}](../{file}.md)'):
      rest = text.partition('\n')[2]
      text = (DOCS.parent / f'{file}.md').read_text() + rest
      text = text.replace('](docs/', '](')
      text = text.replace('](examples)', '](gallery/index.rst)')
  for file, page in BROUGHT_IN.items():
    text = re.sub(rf'\]\((\.\./)?{file}\.md', f']({page}.md', text)
  source[0] = text
