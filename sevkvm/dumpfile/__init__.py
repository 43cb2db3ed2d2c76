"""Dump files, read: a mapped file, the formats, and what each of them tells of the guest it was made of.

A dump holds what its format says it holds and nothing else: bytes that are not in the file are missing, never zero.
"""

from sevkvm.dumpfile.contents import DumpContents, Missing, Store
from sevkvm.dumpfile.opening import FORMATS, open_contents

__all__ = ["FORMATS", "DumpContents", "Missing", "Store", "open_contents"]
