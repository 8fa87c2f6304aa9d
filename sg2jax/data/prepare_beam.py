"""Shards of a data set made by an Apache Beam pipeline: on many machines, if its runner has them.

All of them see the source and the folder of the build at the paths that they have here. What is
sent to a worker is the key of a shard, and so little that no job is too large to submit: what the
shard is made of, it reads in that folder.
"""

from collections.abc import Iterator
import contextlib
import io
import pathlib
import shlex
import warnings

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from sg2jax.data import images, prepare, shards, sources
from sg2jax.faults import DatasetError, UsageError


class _WriteShard(beam.DoFn):
  """Writes the shard of a key."""

  def __init__(self, folder: pathlib.Path, source: pathlib.Path, options: images.Options) -> None:
    self._folder = folder
    self._source = source
    self._options = options

  def setup(self) -> None:
    warnings.filterwarnings('ignore', module='PIL')
    # Without this, every picture would be reported as missing.
    if not self._source.exists():
      raise DatasetError(f'a worker does not see --source={self._source}')
    self._read = sources.reader(self._source)

  def process(self, key: str) -> Iterator[str]:
    shard = shards.load_task(self._folder, key)
    converted = (
      shards.convert(name, self._read, self._options, shard.labels) for name in shard.names
    )
    shards.write(self._folder, shard, converted)
    yield key


def shard_writer(runner: str, beam_options: str) -> prepare.WriteShards:
  """A function that makes shards by a pipeline.

  Args:
    runner: Beam's name of one, such as DirectRunner.
    beam_options: as on the command line of a pipeline, '--name=value --name=value'.

  Raises:
    UsageError: Beam has no such runner, or refuses the options.
  """
  options = _pipeline_options(runner, beam_options)
  try:
    beam.Pipeline(options=options)
  except Exception as e:  # ValueError of most; ImportError where an extra of Beam is missing
    raise UsageError(f'--runner={runner} --beam_options={beam_options!r}: {_last_line(e)}') from e

  def write(
    folder: pathlib.Path, todo: list[shards.Shard], source: str, picture_options: images.Options
  ) -> None:
    if not todo:
      return
    for shard in todo:
      shards.save_task(folder, shard)
    place = pathlib.Path(source).expanduser().absolute()
    pipeline = beam.Pipeline(options=options)
    keys = pipeline | 'Shards' >> beam.Create([shard.key for shard in todo])
    # Reshuffled, or one worker would make all: Create is fused with what follows it.
    spread = keys | 'Spread' >> beam.Reshuffle()
    _ = spread | 'Write' >> beam.ParDo(_WriteShard(folder, place, picture_options))
    try:
      pipeline.run().wait_until_finish()
    except Exception as e:  # of whatever kind, with the traceback of a worker in it
      raise RuntimeError(f'--runner={runner}: {_last_line(e)}') from e

  return write


def _pipeline_options(runner: str, beam_options: str) -> PipelineOptions:
  try:
    given = shlex.split(beam_options)
  except ValueError as e:  # a quote that isn't closed
    raise UsageError(f'--beam_options={beam_options!r}: {e}') from e
  if runner.lower() in ('direct', 'directrunner'):
    # Else Beam would look for its Prism runner on the network first, and that one knows no
    # --direct_num_workers. There is no trigger here, so that this has no other effect.
    given.append('--allow_unsafe_triggers')
  options = PipelineOptions([f'--runner={runner}', *given])
  said = io.StringIO()
  try:
    with contextlib.redirect_stderr(said):
      known = options.get_all_options()
      all_options = options.get_all_options(retain_unknown_options=True)
  except SystemExit as e:  # of argparse
    raise UsageError(f'--beam_options={beam_options!r}: {_last_line(said.getvalue())}') from e
  unknown = sorted(all_options.keys() - known.keys())
  # Runners elsewhere have options of their own, which only they know.
  if unknown and runner.lower() in ('direct', 'directrunner'):
    raise UsageError(f'--beam_options={beam_options!r}: --runner={runner} has no {unknown[0]!r}')
  return options


def _last_line(error: object) -> str:
  lines = str(error).strip().splitlines() or [type(error).__name__]
  return lines[-1]
