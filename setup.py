"""Build the one compiled module, ``sevkvm._native`` (everything else is in pyproject.toml)."""

from setuptools import setup

setup(
    cffi_modules=["csrc/build_native.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
