"""What several modules of this tier share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.readers.dumps import Dumps


@pytest.fixture(scope="session")
def reader_dumps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dumps]:
    """Dumps of the lab's Linux, sparse; gone when the run ends."""
    directory = tmp_path_factory.mktemp("reader-dumps")
    yield Dumps(directory)
    for path in directory.iterdir():
        path.unlink()
