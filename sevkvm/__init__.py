"""Look inside encrypted KVM guests (AMD SEV, SEV-ES) from the host.

``sevkvm.attach.open_guest`` attaches to a running VMM and yields a :class:`sevkvm.guest.Guest`.
"""

from sevkvm._version import __version__

__all__ = ["__version__"]
