"""What the examples show as they go: words, progress, and curves.

Each works without the package that makes it look better.
"""

try:
  from tqdm import tqdm, trange

  say = tqdm.write
except ImportError:
  say, trange = print, range

__all__ = ['save_curves', 'say', 'trange']


def save_curves(curves, path, xlabel, yscale='linear'):
  """Saves a picture of curves side by side, if matplotlib is there.

  Args:
    curves: the values of each, by its title.
    path: where the picture goes.
    xlabel: what the values are counted by.
    yscale: 'linear' or 'log'.
  """
  try:
    import matplotlib
  except ImportError:
    say("No picture: pip install '.[examples]' brings matplotlib.")
    return
  matplotlib.use('agg')
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(
    1, len(curves), figsize=(4.5 * len(curves), 4), squeeze=False
  )
  for axis, (title, values) in zip(axes[0], curves.items()):
    axis.plot(values)
    axis.set(title=title, xlabel=xlabel, yscale=yscale)
  figure.tight_layout()
  figure.savefig(path)
  say(f'Saved {path}')
