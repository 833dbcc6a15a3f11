"""Formulas as MathML, which browsers show without a script from elsewhere."""

from docutils import nodes
from docutils.utils.math import latex2mathml


def setup(app):
  app.add_html_math_renderer('mathml', (inline, None), (block, None))
  return {'parallel_read_safe': True}


def inline(translator, node):
  translator.body.append(mathml(node))
  raise nodes.SkipNode


def block(translator, node):
  text = mathml(node).replace('<math ', '<math display="block" ', 1)
  translator.body.append(f'<div class="math">{text}</div>')
  raise nodes.SkipNode


def mathml(node) -> str:
  # An old command of fonts, in docstrings of JAX.
  text = node.astext().replace(r'\rm', r'\mathrm')
  return latex2mathml.tex2mathml(text)
