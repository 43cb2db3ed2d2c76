"""The package's version, alone in a module so that ``--version`` and the build read it without imports."""

__version__ = "0.1.0"
