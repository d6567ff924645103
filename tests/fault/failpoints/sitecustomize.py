"""Processes that a fault test starts with this folder on PYTHONPATH run the core with failpoints ($SHMLOG_TEST_CORE) in place of the product's."""

import importlib.machinery
import importlib.util
import os
import sys

path = os.environ["SHMLOG_TEST_CORE"]
loader = importlib.machinery.ExtensionFileLoader("shmlog._core", path)
spec = importlib.util.spec_from_file_location("shmlog._core", path, loader=loader)
assert spec is not None
module = importlib.util.module_from_spec(spec)
loader.exec_module(module)
sys.modules["shmlog._core"] = module
