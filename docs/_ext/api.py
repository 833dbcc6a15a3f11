"""What the pages of the API need beyond autodoc.

`.. family:: MODULE` lists names; each gets a line in a table and, below, its
own place. `.. further:: MODULE` does the same for names that need no example,
since the package itself is what uses them. Signatures are those of the source,
without what only the machinery passes; the fields of a class are under "Fields",
with their types.
"""

import ast
import dataclasses
import functools
import importlib
import inspect
import re
import textwrap

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx.util.docutils import switch_source_input

# Where a class is looked for that another one derives from.
PUBLIC = (
  'haiku_state.linen',
  'haiku_state.optim',
  'haiku_state.core',
  'haiku_state.interop',
  'haiku_state.struct',
)
# The machinery passes it; users give modules as fields, and names.
HIDDEN = {'parent'}
# How the source writes what readers know by a shorter name.
PREFIX = re.compile(
  r'\b(?:jnp|np|jax|typing|functools|dataclasses|initializers|nn|meta|'
  r'collections\.abc|_versions|_initializers)\.(?=\w)'
)
IS_SENTINEL = re.compile(r'(?i)<.*>|unspecified|_?missing|no_default')


def setup(app):
  app.setup_extension('sphinx.ext.autodoc')
  app.add_directive('family', Family)
  app.add_directive('further', Family)
  app.connect('autodoc-process-signature', write_signature)
  app.connect('autodoc-process-bases', name_bases)
  app.connect('autodoc-skip-member', skip_field)
  # Before napoleon, whose priority is 500, and after it.
  app.connect('autodoc-process-docstring', name_fields, priority=400)
  app.connect('autodoc-process-docstring', as_restructured_text, priority=900)
  app.connect('html-page-context', lead_back)
  return {'parallel_read_safe': True}


# --- Families ----------------------------------------------------------------


class Family(Directive):
  """A table of names with their first lines, and the names one by one."""

  required_arguments = 1
  has_content = True

  def run(self):
    module = self.arguments[0]
    names = ' '.join(self.content).split()
    # Names are looked up from outside of their module.
    lines = [
      '.. py:currentmodule:: None',
      '',
      '.. autosummary::',
      '   :nosignatures:',
      '',
    ]
    values = {
      name: getattr(importlib.import_module(module), name) for name in names
    }
    # Constants have no first line of their own.
    lines += [
      f'   ~{module}.{name}'
      for name, value in values.items()
      if kind_of(value) != 'data'
    ]
    for name, value in values.items():
      lines += ['', f'.. auto{kind_of(value)}:: {module}.{name}']
      if kind_of(value) == 'data' and not isinstance(value, str):
        lines += ['   :no-value:']
    place = nodes.section()
    place.document = self.state.document
    content = StringList(lines, source=self.content.source(0))
    with switch_source_input(self.state, content):
      self.state.nested_parse(content, self.content_offset, place)
    return place.children


def kind_of(value) -> str:
  if inspect.isclass(value):
    return 'exception' if issubclass(value, BaseException) else 'class'
  is_function = callable(value) and hasattr(value, '__name__')
  is_alias = getattr(value, '__module__', '') in ('typing', 'collections.abc')
  return 'function' if is_function and not is_alias else 'data'


# --- Signatures --------------------------------------------------------------


def write_signature(app, what, name, obj, options, signature, result):
  """Writes a signature with the types and defaults that the source has."""
  if what not in ('class', 'exception', 'function', 'method'):
    return None
  try:
    parameters = list(inspect.signature(obj).parameters.values())
  except (TypeError, ValueError):
    return None
  if what == 'method' and not is_bound(name):
    parameters = parameters[1:]
  texts = texts_of_class(obj) if inspect.isclass(obj) else texts_of(obj)
  written = [written_as(p, texts) for p in parameters if p.name not in HIDDEN]
  result = texts.get('return', ('', ''))[0]
  return f'({", ".join(with_marks(parameters, written))})', result or None


def is_bound(name: str) -> bool:
  """Says whether a method of this dotted name has its first argument."""
  owner, _, method = name.rpartition('.')
  module, _, cls = owner.rpartition('.')
  found = getattr(importlib.import_module(module), cls).__mro__
  static = next((vars(c)[method] for c in found if method in vars(c)), None)
  return isinstance(static, (staticmethod, classmethod))


def written_as(parameter, texts) -> str:
  """Returns a parameter as Python would have it written."""
  type_text, default = texts.get(parameter.name, ('', ''))
  stars = {parameter.VAR_POSITIONAL: '*', parameter.VAR_KEYWORD: '**'}
  text = stars.get(parameter.kind, '') + parameter.name
  if type_text:
    text += f': {type_text}'
  if parameter.default is not parameter.empty:
    default = default or short(parameter.default)
    text += f' = {default}' if type_text else f'={default}'
  return text


def with_marks(parameters, written):
  """Yields what is written, with the marks `*` and `/` between."""
  shown = [p for p in parameters if p.name not in HIDDEN]
  was = None
  for parameter, text in zip(shown, written):
    if was == parameter.POSITIONAL_ONLY != parameter.kind:
      yield '/'
    if parameter.kind == parameter.KEYWORD_ONLY and was not in (
      parameter.KEYWORD_ONLY,
      parameter.VAR_POSITIONAL,
    ):
      yield '*'
    was = parameter.kind
    yield text


def short(value) -> str:
  """Returns a default as one would say it."""
  if inspect.isclass(value) or inspect.isroutine(value):
    return value.__name__
  text = repr(value)
  return '...' if IS_SENTINEL.fullmatch(text) else text


@functools.cache
def tree_of(obj) -> ast.AST | None:
  """Returns the syntax of a class or a function; None where none is had."""
  try:
    source = textwrap.dedent(inspect.getsource(obj))
    return ast.parse(source).body[0]
  except (OSError, TypeError, SyntaxError, IndexError):
    return None


def texts_of(function) -> dict[str, tuple[str, str]]:
  """Returns type and default of each argument, as the source has them."""
  tree = tree_of(inspect.unwrap(function))
  arguments = getattr(tree, 'args', None)
  if not isinstance(arguments, ast.arguments):
    return {}
  positional = arguments.posonlyargs + arguments.args
  gap = len(positional) - len(arguments.defaults)
  defaults = [None] * gap + arguments.defaults + arguments.kw_defaults
  texts = {
    a.arg: (text_of(a.annotation), text_of(d))
    for a, d in zip(positional + arguments.kwonlyargs, defaults)
  }
  for rest in filter(None, (arguments.vararg, arguments.kwarg)):
    texts[rest.arg] = (text_of(rest.annotation), '')
  return {**texts, 'return': (text_of(tree.returns), '')}


def texts_of_class(cls) -> dict[str, tuple[str, str]]:
  """Returns type and default of each argument of a class."""
  texts = {}
  for c in reversed(cls.__mro__):
    if '__init__' in vars(c) and not dataclasses.is_dataclass(c):
      texts.update(texts_of(vars(c)['__init__']))
    texts.update(texts_of_fields(c))
  if 'parent' in texts:  # A module's name has a default that stands for None.
    texts['name'] = ('str | None', 'None')
  texts.pop('return', None)
  return texts


def texts_of_fields(cls) -> dict[str, tuple[str, str]]:
  """Returns type and default of what a class body annotates."""
  return {
    node.target.id: (text_of(node.annotation), default_of(node.value))
    for node in getattr(tree_of(cls), 'body', [])
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
  }


def default_of(node) -> str:
  """Returns the default of a field, also one that `field` is given."""
  if isinstance(node, ast.Call) and text_of(node.func).endswith('field'):
    for keyword in node.keywords:
      if keyword.arg == 'default':
        return default_of(keyword.value)
      if keyword.arg == 'default_factory':
        return f'{text_of(keyword.value)}()'
    return ''
  return text_of(node)


def text_of(node) -> str:
  if node is None:
    return ''
  text = ast.unparse(node)
  return PREFIX.sub('', '...' if IS_SENTINEL.fullmatch(text) else text)


# --- Classes -----------------------------------------------------------------


def name_bases(app, name, obj, options, bases):
  """Calls bases by their public names, and leaves the private out."""
  bases[:] = [public for b in bases if (public := public_name(b))]


def public_name(cls) -> str | None:
  cls = getattr(cls, '__origin__', cls)
  for place in PUBLIC:
    if getattr(importlib.import_module(place), cls.__name__, None) is cls:
      return f':py:class:`~{place}.{cls.__name__}`'
  module = re.sub(r'\._.*', '', cls.__module__)
  if cls.__name__.startswith('_') or cls is object:
    return None
  return f':py:class:`~{module}.{cls.__name__}`'


def skip_field(app, what, name, obj, skip, options):
  """Leaves out what "Fields" has, and what a decorator has added."""
  fields = app.env.temp_data.get('fields_of_class', ())
  return True if name in fields or name == 'replace' else None


def name_fields(app, what, name, obj, options, lines):
  """Has the attributes of a class under "Fields", with their types."""
  if not inspect.isclass(obj):
    return
  app.env.temp_data['fields_of_class'] = set(
    getattr(obj, '__dataclass_fields__', ())
  ) | set(getattr(obj, '_fields', ()))
  texts, start = texts_of_class(obj), None
  for i, line in enumerate(lines):
    if line.rstrip() == 'Attributes:':
      lines[i], start = 'Fields:', i
    elif start is not None and line and not line.startswith(' '):
      start = None
    field = start is not None and re.match(r'  (\w+): (.*)', line)
    if field and texts.get(field[1], ('',))[0]:
      lines[i] = f'  {field[1]} ({texts[field[1]][0]}): {field[2]}'


# --- Docstrings --------------------------------------------------------------


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
  # Napoleon has marked the types of fields: `(*int*) -- text`.
  part = re.sub(r'(?<![\\*\w])\*(?=\w)(?!.*\*\) --)', r'\*', part)
  return re.sub(r'^(?=s\b)', r'\ ', part)


# --- Pages of source ---------------------------------------------------------

BACK = re.compile(
  r'(<a class="viewcode-back" href=")([^"#]*)#([^"]*)(">.*?</a>)'
)


def lead_back(app, page, template, context, doctree):
  """Has links from the source lead to where a name is told of.

  Viewcode takes all names of a file to be told of under one module.
  """
  if not page.startswith('_modules/'):
    return
  module = page.removeprefix('_modules/').replace('/', '.')
  objects = app.env.get_domain('py').objects

  def corrected(match):
    parts = match[3].split('.')
    tails = ['.'.join(parts[-n:]) for n in (1, 2)]
    for name in (match[3], *(f'{module}.{tail}' for tail in tails)):
      if found := objects.get(name):
        uri = app.builder.get_relative_uri(page, found.docname)
        return f'{match[1]}{uri}#{found.node_id}{match[4]}'
    return ''

  context['body'] = BACK.sub(corrected, context['body'])
