"""Programs that are interrupted give the right numbers afterwards.

`python -m tests.fuzz.faults 300` interrupts all of the programs, and more often.
"""

import os

import pytest
from fuzz import fault_programs, faults

from haiku_state._extents import Extent, Extents, restored
from haiku_state.linen._module.context import context

# Those that need nothing compiled, of each kind.
PROGRAMS = {
  name: programs[name]
  for group, names in {
    'methods': 'first_use first_look first_adoption setup bound_mutable observed',
    'lifted': 'jit custom_vjp compiled_keys compiled_parts',
    'haiku': 'made_outside first_in_haiku odd_names',
    'saving': 'bytes_of_trees checkpoint weight_files port hook runner',
  }.items()
  for programs in [fault_programs.GROUPS[group]]
  for name in names.split()
}


@pytest.mark.parametrize('error', faults.ERRORS)
def test_interrupted_programs(error):
  once = fault_programs.INTERRUPTED_ONCE
  results, problems = faults.run(
    PROGRAMS,
    fault_programs.probe,
    32,
    each=('line',),
    errors=(error,),
    once=once,
  )
  assert not problems, '\n\n'.join(problems)
  assert results[error.__name__] == 32


def test_each_line_that_ends_a_call():
  """Where the module is left, and its run: each line there, once."""
  probe = faults.Program.of(fault_programs.probe, ())
  program = faults.Program.of(small(), ('line',))
  last = program.steps['line']
  for at in range(last - 45, last + 1):
    fault = faults.Fault(KeyboardInterrupt, at)
    found = faults.interrupted(program, fault, probe)
    assert not found, (fault.where, found)
    assert len(fault.where) == 1


def small():
  model = fault_programs.nn.Dense(2, use_bias=False)
  bound = model.bind(model.init(fault_programs.KEY, fault_programs.X))
  return lambda: bound(fault_programs.X)


# --- What it rests on --------------------------------------------------------


class Named(Extent):
  __slots__ = ('name',)

  def __init__(self, name='outside'):
    self.name = name


def test_an_extent_holds_as_long_as_its_with_statement():
  extents = Extents(Named)
  with extents.begin(Named('a')):
    with extents.begin(Named('b')):
      assert extents.current().name == 'b'
    assert extents.current().name == 'a'
  assert extents.current().name == 'outside'
  extents.begin(Named('never entered'))
  assert extents.current().name == 'outside'


def test_an_extent_ends_where_its_statement_is_cut_off():
  extents, kept = Extents(Named), []

  def run(cut_off):
    with extents.begin(Named('a')):
      # What keeps it alive does not keep it in force.
      seen = extents.current()
      cut_off()
    del seen

  def fail():
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt) as e:
    run(fail)
  kept.append(e.value)
  assert extents.current().name == 'outside'


def test_settings_are_put_back_once_more_if_that_is_interrupted():
  calls = []

  def restore():
    calls.append(len(calls))
    if len(calls) == 2:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt), restored(restore):
    pass
  assert calls == [0, 1, 2]


def test_nothing_is_pushed_where_no_call_goes_on():
  assert context.current().is_base
  small()()
  assert context.current().is_base
  assert context.current().module_stack == [None]


def test_a_file_of_a_save_that_was_cut_off_is_removed_by_the_next(tmp_path):
  from haiku_state.interop import checkpoints

  mask = os.umask(0o027)
  try:
    left = checkpoints.temporary_path(tmp_path, '.haiku_state-')
    with open(left, 'w') as file:
      file.write('half')
    checkpoints.save_npz(tmp_path / 'a.npz', {'a': {'w': fault_programs.X}})
    assert os.listdir(tmp_path) == ['a.npz']
    assert (tmp_path / 'a.npz').stat().st_mode & 0o777 == 0o640
  finally:
    os.umask(mask)
