"""Random graphs of modules do what they do with Flax.

`FUZZ_EXAMPLES=1000 pytest tests/fuzz/test_module_graphs.py` compares more of them.
Of these, some fail with 'leaks' where Flax has raised another error: ours tells of
the leak, which came first.
"""

import os

import pytest
from fuzz.module_graphs import Graph
from module_compare import assert_same_as_flax

EXAMPLES = int(os.environ.get('FUZZ_EXAMPLES', 60))


@pytest.mark.parametrize('seed', range(EXAMPLES))
def test_same_as_flax(seed):
  assert_same_as_flax(Graph(seed))
