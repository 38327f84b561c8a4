"""What every test stands on: two logical CPU devices, no GPU, and no file from beside the checkout."""

import importlib.abc
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Before any import of TensorFlow, and inherited by the processes that tests start.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["MPLBACKEND"] = "Agg"


class TwoDevices(importlib.abc.MetaPathFinder):
    """Splits the CPU in two as soon as TensorFlow is imported, and costs nothing to tests that never import it.

    Devices cannot be changed once TensorFlow has run anything, so a fixture would come too late for a module that
    makes a tensor while it is imported.
    """

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "tensorflow":
            return None
        sys.meta_path.remove(self)  # for this look-up only: looking is not importing
        spec = importlib.util.find_spec(fullname)
        sys.meta_path.insert(0, self)
        execute = spec.loader.exec_module

        def exec_module(module):
            sys.meta_path.remove(self)
            execute(module)
            (cpu,) = module.config.list_physical_devices("CPU")
            module.config.set_logical_device_configuration(cpu, [module.config.LogicalDeviceConfiguration()] * 2)

        spec.loader.exec_module = exec_module
        return spec


assert "tensorflow" not in sys.modules, "a pytest plugin imported tensorflow before the devices were set"
sys.meta_path.insert(0, TwoDevices())


BESIDE = f"{ROOT.parent}{os.sep}"
ALLOWED = tuple(
    os.path.join(os.path.realpath(folder), "") for folder in (ROOT, tempfile.gettempdir(), sys.prefix, sys.base_prefix)
)


def stay_inside(event: str, arguments: tuple) -> None:
    """Audit hook: a test must pass in a lonely clone, so no file in a folder beside the checkout may be opened."""
    if event != "open" or not isinstance(arguments[0], str | bytes):
        return
    path = os.path.abspath(os.fsdecode(arguments[0]))
    # Hidden folders hold caches and interpreters where the checkout lies in a home folder.
    if path.startswith(BESIDE) and not path.startswith((*ALLOWED, f"{BESIDE}.")):
        raise PermissionError(f"{path} lies beside the checkout: tests make or fetch what they need")


sys.addaudithook(stay_inside)
