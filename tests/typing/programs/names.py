"""Submodules as attributes, FrozenDicts, and boxes."""

from typing import TYPE_CHECKING

import jax

import haiku_state
import haiku_state.linen as nn
from haiku_state import struct
from haiku_state.core import FrozenDict, freeze, pop, unfreeze

x = jax.random.normal(jax.random.key(0), (2,))
made = nn.initializers.zeros_init()(jax.random.key(0), (2,))
reveal_type(made)  # shows: Array | Any
reveal_type(nn.activation.relu(x))  # shows: Array
reveal_type(nn.module.Module())  # shows: Module
reveal_type(nn.partitioning.AxisMetadata(()))  # shows: AxisMetadata
reveal_type(nn.linear.Dense(3))  # shows: Dense
reveal_type(nn.recurrent.LSTMCell(3))  # shows: LSTMCell
reveal_type(haiku_state.core.meta.is_axis_metadata(3))  # shows: bool
reveal_type(haiku_state.linen.Dense(3))  # shows: Dense

descent = haiku_state.optim.sgd.GradientDescent(0.1)
reveal_type(descent)  # shows: GradientDescent

frozen = freeze({'a': 1, 'b': 2})
reveal_type(frozen)  # shows: FrozenDict[str, int]
reveal_type(frozen['a'])  # shows: int
reveal_type(FrozenDict(a=1.5))  # shows: FrozenDict[str, float]
reveal_type(FrozenDict({1: 'x'}))  # shows: FrozenDict[int, str]
reveal_type([k for k in frozen])  # shows: list[str]
reveal_type(list(frozen.items()))  # shows: list[tuple[str, int]]
reveal_type(frozen.pop('a'))  # shows: tuple[FrozenDict[str, int], int]
reveal_type(frozen.copy({'c': 3}))  # shows: FrozenDict[str, int]
reveal_type(unfreeze(frozen))  # shows: dict[Any, Any]
reveal_type(pop({'a': 1}, 'a'))  # shows: tuple[dict[str, int], Any]
reveal_type(pop(frozen, 'a'))  # shows: tuple[FrozenDict[str, int], Any]


class Node(struct.PyTreeNode):
  value: jax.Array
  label: str = struct.field(pytree_node=False, default='')


reveal_type(Node(x).replace(label='x'))  # shows: Node

if TYPE_CHECKING:
  reveal_type(nn.LayerNorm()(x))  # shows: Array | Any
  carry = nn.LSTMCell(3).initialize_carry(jax.random.key(0), (2, 3))
  reveal_type(nn.LSTMCell(3)(carry, x)[1])  # shows: Array | Any
  frozen['c'] = 3  # error: reportIndexIssue index
  nn.initializer  # error: reportAttributeAccessIssue attr-defined
  haiku_state.linnen  # error: reportAttributeAccessIssue attr-defined
  Node(label='x')  # error: reportCallIssue call-arg
  Node(x).label = 'y'  # error: reportAttributeAccessIssue misc
