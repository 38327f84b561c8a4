"""What XLA is told before it compiles for a CPU, so that loops over short rows use vectors.

LLVM unrolls a loop over a row of some 60 numbers or fewer before it looks for loops to vectorise, and XLA leaves out
the pass that finds vectors in straight code: copies and sums of such rows are made number by number. Kept as loops,
they are vectorised. Vectors are of 512 bits where the CPU has them; XLA's own choice is 256.
"""

import os

FLAGS = ("--xla_backend_extra_options=--unroll-full-max-count=8", "--xla_cpu_prefer_vector_width=512")


def prepare() -> None:
    """For the process, and only before it uses XLA: that reads XLA_FLAGS once. What is said there already stays."""
    said = os.environ.get("XLA_FLAGS", "").split()
    named = {flag.partition("=")[0] for flag in said}
    os.environ["XLA_FLAGS"] = " ".join([*said, *(flag for flag in FLAGS if flag.partition("=")[0] not in named)])
