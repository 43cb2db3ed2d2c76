"""Which kernel is pretended: the way of KVM_SEV_DBG_* was written anew in 2026.

``old`` is every kernel up to 7.1 at once: each known bug of that time is there, also those that some of these
kernels had fixed already (the wrong offset, fixed in 5.11; the page overflow, fixed in the stable kernels of July
2026). A tool that is right under ``old`` is right on all of them. ``new`` is the rewrite, Linux 7.2.
"""

from __future__ import annotations

from typing import Literal

Generation = Literal["old", "new"]
