"""Which engine runs the pipeline, by name."""

import contextlib
import io

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipeline.errors import USAGE, UserError
from pipeline.preprocess.reported import recovered, untraced


def run(pipeline: beam.Pipeline) -> None:
    """Runs the pipeline to its end. Raises what the workers reported."""
    try:
        with untraced():
            pipeline.run().wait_until_finish()
    except Exception as error:
        raise recovered(error) from error


def prepare(name: str, options: tuple[str, ...]) -> beam.Pipeline:
    """An empty pipeline for this runner. Raises UserError(USAGE) for an unknown runner or a wrong option value.

    FnApiRunner is taken as it is: Beam's DirectRunner would first try to download another engine (Prism).
    """
    try:
        runner = FnApiRunner() if name == "FnApiRunner" else beam.runners.create_runner(name)
    except (ValueError, ImportError, AttributeError) as error:
        raise UserError(f"--data.runner {name}: {str(error).splitlines()[0]}", USAGE) from None
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):  # argparse prints its usage, then exits
            settings = PipelineOptions(list(options))
            settings.get_all_options()  # parsed here, where a wrong value can still be told in one line
            return beam.Pipeline(runner=runner, options=settings)
    except (SystemExit, ValueError) as error:
        reason = (complaint.getvalue() or str(error)).strip().splitlines()[-1]
        raise UserError(f"--data.runner-options {' '.join(options)}: {reason}", USAGE) from None
