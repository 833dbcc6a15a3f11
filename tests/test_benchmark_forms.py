"""The forms of a workload of the benchmark are one program.

Ratios to pure JAX say what is left to gain only where it does the same.
"""

import collections

import jax
import pytest

# By a name of this file: the function that makes the workload, and how large it
# is here.
SMALL = {
  'vmapped': ('workloads.vmapped',),
  'dense and norm': ('workloads.deep', 2),
  'dense': ('workloads.deep', 2, False),
  'setup': ('workloads.setup_style', 2),
  'shared': ('workloads.shared', 2),
  'bind': ('workloads.bound', 2),
  'modules': ('workloads.many_modules', 2),
  'nested': ('workloads.nested', 3),
  'parameters': ('workloads.many_params', 2),
  'variables': ('workloads.many_variables', 2),
  'remat': ('lifted.remat', 2),
  'scan': ('lifted.scan_layers', 3),
  'ensemble': ('lifted.ensemble', 3),
  'RNN': ('models.lstm',),
  'LSTM in scan': ('models.lstm', 'scan'),
  'transformer': ('models.transformer', 2),
  'ResNet': ('models.resnet50',),
  **{
    name: ('lifted.lifted', name)
    for name in (
      'jit',
      'cond',
      'switch',
      'jvp',
      'vjp',
      'custom_vjp',
      'map_variables',
    )
  },
}


@pytest.fixture
def workload(benchmarks, name, monkeypatch):
  # Blocks of all three kinds: one with other channels, one with other strides,
  # and one with neither.
  monkeypatch.setattr(benchmarks.models, 'GROUPS', (2, 1, 1, 1))
  path, *arguments = SMALL[name]
  module, function = path.split('.')
  return getattr(getattr(benchmarks, module), function)(*arguments)


def test_none_is_left_out(benchmarks):
  workloads = benchmarks.workloads
  for name, make in (workloads.WORKLOADS | workloads.OTHER_SIZES).items():
    assert make().pure is not None, name
  assert set(benchmarks.lifted.LIFTED) < set(SMALL)


@pytest.mark.parametrize('name', SMALL)
def test_steps_are_lowered_to_one_text(benchmarks, workload):
  libraries = ('haiku_state', 'flax.linen', 'pure JAX')
  forms = benchmarks.forms.programs(workload, libraries)
  ours, *others = (
    benchmarks.tasks.lowered(form, workload.inputs) for form in forms.values()
  )
  assert others
  for text in others:
    assert text == ours


IN_HAIKU = (
  'dense and norm',
  'dense',
  'modules',
  'remat',
  'scan',
  'ensemble',
  'RNN',
  'transformer',
  'ResNet',
)


@pytest.mark.parametrize('name', IN_HAIKU)
def test_haikus_form_agrees_in_shapes(benchmarks, workload):
  def shapes(program):
    key = jax.random.key(0)
    variables = jax.eval_shape(program.init, key, *workload.inputs)
    y, _ = jax.eval_shape(program.apply, variables, *workload.inputs)
    return y

  libraries = ('haiku_state', 'Haiku')
  ours, haikus = benchmarks.forms.programs(workload, libraries).values()
  assert shapes(ours) == shapes(haikus)


# What a lifted transform derives keys of its own with, and so linen alone does.
OF_KEYS = {'random_fold_in', 'random_clone', 'random_seed'}
# To make variables, and to map them. Pure JAX needs no first run to know them.
RUNS_TWICE = {'map_variables'}


@pytest.mark.parametrize('name', sorted(set(SMALL) - RUNS_TWICE))
def test_pure_init_does_what_linens_has_to(benchmarks, workload):
  forms = benchmarks.forms.programs(workload, ['haiku_state', 'pure JAX'])
  linen, pure = (done_in_init(form, workload.inputs) for form in forms.values())
  assert not pure - linen
  assert set(linen - pure) <= OF_KEYS


def done_in_init(program, inputs):
  """Counts the operations of `init` by name."""
  key = jax.random.key(0)
  traced = jax.make_jaxpr(lambda key: program.init(key, *inputs))(key)
  return count(traced.jaxpr, collections.Counter())


def count(jaxpr, found):
  for equation in jaxpr.eqns:
    found[equation.primitive.name] += 1
    for value in jax.tree.leaves(
      list(equation.params.values()), is_leaf=lambda x: hasattr(x, 'eqns')
    ):
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        count(inner, found)
  return found


def test_counting_looks_inside(benchmarks):
  del benchmarks
  f = jax.jit(lambda x: jax.lax.cond(x > 0, lambda x: x + 1, lambda x: -x, x))
  found = count(jax.make_jaxpr(f)(1.0).jaxpr, collections.Counter())
  assert found['add'] == found['neg'] == found['cond'] == 1
