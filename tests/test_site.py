"""The site builds without a warning, and what it links to is there."""

import html.parser
import importlib
import inspect
import pathlib
import re
import shutil
import subprocess
import sys
import urllib.parse

import pytest

import haiku_state
from haiku_state import errors

for needed in (
  'sphinx',
  'myst_parser',
  'furo',
  'sphinx_copybutton',
  'sphinx_gallery',
):
  pytest.importorskip(needed)

REPOSITORY = pathlib.Path(__file__).parents[1]
FAMILY = re.compile(r'^\.\. (family|further):: (\S+)\n\n((?:   \w+\n)+)', re.M)


@pytest.fixture(scope='module')
def site(tmp_path_factory):
  """Builds the site, without running the examples, and returns its folder."""
  top = tmp_path_factory.mktemp('site')
  # The gallery writes its pages beside the others, so those are a copy.
  for folder in ('docs', 'examples'):
    shutil.copytree(
      REPOSITORY / folder,
      top / folder,
      ignore=shutil.ignore_patterns('gallery', '__pycache__'),
    )
  for file in ('README.md', 'CHANGELOG.md', 'CONTRIBUTING.md'):
    shutil.copy(REPOSITORY / file, top)
  built = subprocess.run(
    [sys.executable, '-m', 'sphinx', '-qW', '--keep-going']
    + ['-D', 'plot_gallery=0', top / 'docs', top / 'site'],
    capture_output=True,
    text=True,
    cwd=REPOSITORY,
  )
  assert built.returncode == 0, built.stderr
  return top / 'site'


class Page(html.parser.HTMLParser):
  """The places of a page, what it links to, and what it loads."""

  def __init__(self, path):
    super().__init__()
    self.ids, self.links, self.loads = set(), [], []
    self.feed(path.read_text())

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.ids.add(attrs.get('id'))
    if tag == 'a' and 'href' in attrs:
      self.links.append(attrs['href'])
    if tag in ('img', 'script', 'iframe'):
      self.loads.append(attrs.get('src'))
    if tag == 'link' and attrs.get('rel') in ('stylesheet', 'icon'):
      self.loads.append(attrs['href'])


@pytest.fixture(scope='module')
def pages(site):
  return {path: Page(path) for path in site.rglob('*.html')}


# --- Links -------------------------------------------------------------------


def leads_somewhere(link, page, pages):
  """Says whether a link within the site has a file, and a place in it."""
  target = urllib.parse.urlsplit(link)
  if target.scheme:
    return True
  file = (page.parent / urllib.parse.unquote(target.path)).resolve()
  file = file if target.path else page
  if not file.exists():
    return False
  # Sphinx and furo have places that their scripts know: the top, and none.
  places = pages[file].ids | {'', None} if file in pages else ()
  return file not in pages or urllib.parse.unquote(target.fragment) in places


def test_links_lead_somewhere(pages):
  assert len(pages) > 40
  dead = [
    f'{page.name}: {link}'
    for page, read in pages.items()
    for link in read.links
    if not leads_somewhere(link, page, pages)
  ]
  assert not dead


def test_nothing_is_loaded_from_elsewhere(site, pages):
  for page, read in pages.items():
    for link in filter(None, read.loads):
      assert leads_somewhere(link, page, pages), (page, link)
      assert not urllib.parse.urlsplit(link).scheme, (page, link)
  for sheet in site.rglob('*.css'):
    assert not re.search(r'url\(\s*["\']?https?:', sheet.read_text()), sheet


def test_every_page_has_a_name_of_its_own(site):
  titles = {}
  for page in site.rglob('*.html'):
    title = re.search('<h1>(.*?)<a ', page.read_text())
    # Sphinx makes the pages of source.
    if title and '_modules' not in page.parts:
      titles.setdefault(title[1], []).append(page.name)
  twice = {title: names for title, names in titles.items() if len(names) > 1}
  assert not twice


def test_first_page_is_the_readme(pages, site):
  page = pages[site / 'index.html']
  assert {'import-it', 'put-it-into-a-haiku-project'} <= page.ids
  assert {'design.html', 'changelog.html', 'contributing.html'} <= set(
    page.links
  )


def test_citation_is_of_this_version():
  version = haiku_state.__version__
  assert f'\nversion: {version}\n' in (REPOSITORY / 'CITATION.cff').read_text()
  citing = (REPOSITORY / 'docs' / 'citing.md').read_text()
  assert f'version = {{{version}}}' in citing


# --- Names -------------------------------------------------------------------


def test_every_error_has_its_place(pages, site):
  classes = [
    c
    for c in vars(errors).values()
    if inspect.isclass(c) and issubclass(c, errors.FlaxError)
  ]
  assert len(classes) > 20
  for c in classes:
    # As `FlaxError` writes it.
    place = f'{c.__module__}.{c.__name__}'
    assert place in pages[site / 'api' / 'errors.html'].ids


def families(*directives):
  """Yields the names that the pages of the API put into families."""
  for page in sorted((REPOSITORY / 'docs' / 'api').glob('*.rst')):
    for directive, module, names in FAMILY.findall(page.read_text()):
      if directive in directives:
        yield from ((module, name) for name in names.split())


def listed():
  return list(families('family', 'further'))


def test_names_are_where_users_find_them(pages):
  places = set().union(*(page.ids for page in pages.values()))
  assert len(listed()) > 250
  for module, name in listed():
    assert f'{module}.{name}' in places


@pytest.mark.parametrize(
  'module',
  [
    'haiku_state.linen',
    'haiku_state.core',
    'haiku_state.optim',
    'haiku_state.interop',
    'haiku_state.port',
    'haiku_state.struct',
    'haiku_state.serialization',
    'haiku_state.traverse_util',
    'haiku_state.jax_utils',
    'haiku_state.training.checkpoints',
  ],
)
def test_no_name_lacks_its_place(module):
  there = {
    id(getattr(importlib.import_module(m), name)) for m, name in listed()
  }
  found = importlib.import_module(module)
  missing = [
    name
    for name in getattr(found, '__all__', vars(found))
    if callable(value := getattr(found, name))
    and not name.startswith('_')
    and str(value.__module__).startswith(('haiku_state', 'jax._src.nn'))
    and id(value) not in there
  ]
  assert not missing, 'enter these in a family of docs/api'


def has_example(module, name):
  """Says whether a name has an example; those of JAX have it in the module."""
  value = getattr(importlib.import_module(module), name)
  if not callable(value) or '>>>' in (value.__doc__ or ''):
    return True
  if not str(value.__module__).startswith('jax'):
    return False
  page = 'haiku_state.linen.activation' if module.endswith('linen') else module
  shown = importlib.import_module(page).__doc__
  return re.search(rf'>>> .*\.{name}\(', shown) is not None


def test_every_name_of_a_family_has_an_example():
  without = [
    f'{m}.{name}' for m, name in families('family') if not has_example(m, name)
  ]
  assert not without


def test_signatures_can_be_read(site):
  found = ''
  for page in (site / 'api').glob('*.html'):
    for signature in re.findall(
      '<dt class="sig.*?</dt>', page.read_text(), re.S
    ):
      text = html.unescape(re.sub('<[^>]*>', '', signature))
      found += re.sub(r'\s+', ' ', text)
      assert ' at 0x' not in text and 'object>' not in text, text
      assert '= Unspecified' not in text and '_src' not in text, text
  for part in (
    'param_dtype: Dtype = float32',
    'bias_init: Initializer = zeros',
  ):
    assert part in found


def test_fields_are_under_their_title_with_types(site):
  page = (site / 'api' / 'normalization.html').read_text()
  fields = page[page.index('Fields<span') :]
  text = re.sub(r'\s+', ' ', html.unescape(re.sub('<[^>]*>', '', fields)))
  assert 'momentum (float) –' in text
  assert not re.search(r'\(\*[^()]*\*\)', text)
