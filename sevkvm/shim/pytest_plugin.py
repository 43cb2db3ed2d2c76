"""A pytest plugin: the fixture ``sev_host``, a pretend SEV host for one test.

    @pytest.mark.sev_host(generation="old", faults=["dbg_decrypt:after=2:status=HWSEV_RET_PLATFORM"])
    def test_my_tool(sev_host):
        process = sev_host.popen(["my-tool"])

The marker takes what ``SevHost`` takes: ``kvm`` ("auto", "real", "standin"), ``generation``, ``cbit_pos``,
``trap_stat``; ``faults`` in the notation of ``sevkvm shim --fault``; ``latency``, seconds for each firmware command. A
test is skipped, with the reason, where no such host can be had.

With SEVKVM_HARDWARE=1 in the environment the fixture is this machine with its real /dev/sev (hardware.py): the same
tests then run on hardware, and those that ask for what only a pretend host can do are skipped, with the reason.

It is loaded in every pytest run of whoever has sevkvm installed, so nothing is imported here before it is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from sevkvm.shim.hardware import HardwareHost
    from sevkvm.shim.supervisor import SevHost

_MARKER = "sev_host(kvm, generation, cbit_pos, trap_stat, faults, latency): options of the sev_host fixture (sevkvm)"


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", _MARKER)


@pytest.fixture
def sev_host(request: pytest.FixtureRequest) -> Iterator[SevHost | HardwareHost]:
    """A SEV host, pretended unless hardware is asked for; ended with all its programs when the test is over."""
    options = _options(request.node)
    from sevkvm.shim import hardware

    if hardware.wanted():
        if reason := hardware.why_unavailable() or hardware.why_not(**options):
            pytest.skip(f"sev_host: {reason}")
        with hardware.HardwareHost(pytest.skip) as machine:
            yield machine
        return
    try:
        from sevkvm.shim.availability import why_unavailable
        from sevkvm.shim.faults import Faults, parse_fault
        from sevkvm.shim.supervisor import SevHost
    except ModuleNotFoundError as error:
        pytest.fail(
            f"sev_host needs the Python module {error.name}: pip install 'sevkvm[shim]'", pytrace=False
        )
    if reason := why_unavailable(options.get("kvm", "auto")):
        pytest.skip(f"sev_host: {reason}")
    faults = [parse_fault(text) for text in options.pop("faults", ())]
    latency = options.pop("latency", 0.0)
    with SevHost(faults=Faults(faults, latency), **options) as host:
        yield host


def _options(node: pytest.Item) -> dict[str, Any]:
    """The marker's arguments; of several (module, class, function) the nearest says each."""
    options: dict[str, Any] = {}
    for marker in reversed(list(node.iter_markers("sev_host"))):
        if marker.args:
            raise pytest.UsageError("the sev_host marker takes keyword arguments only")
        options |= marker.kwargs
    unknown = options.keys() - {"kvm", "generation", "cbit_pos", "trap_stat", "faults", "latency"}
    if unknown:
        raise pytest.UsageError(f"the sev_host marker does not know {', '.join(sorted(unknown))}")
    return options
