"""From raw rows to committed records, with Apache Beam. Nothing outside this folder imports Beam."""

import logging

logging.disable(logging.WARNING)  # while it is imported Beam warns of Google Cloud clients, which nobody asked for
import apache_beam  # noqa: E402, F401

logging.disable(logging.NOTSET)
