"""One native decoder a thread and way of reading entries: made once, used for every walk."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from sevkvm import native

if TYPE_CHECKING:
    from sevkvm.paging.form import PagingForm

_local = threading.local()  # a decoder's buffers serve one thread at a time


def decoder_for(form: PagingForm) -> native.TableDecoder:
    """The calling thread's decoder for tables of this form, whatever their root."""
    try:
        decoders: dict[tuple[int, bool, int | None, int], native.TableDecoder] = _local.decoders
    except AttributeError:
        decoders = _local.decoders = {}
    key = (form.mode, form.nx, form.cbit_pos, form.phys_bits)
    found = decoders.get(key)
    if found is None:
        found = decoders[key] = native.TableDecoder(
            form.mode, nx=form.nx, cbit_mask=form.cbit_mask, address_mask=form.address_mask
        )
    return found
