"""Questions to a monitor that may answer anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sevkvm import errors
from sevkvm.host import monitorfacts
from sevkvm.host.monitorfacts import MonitorSev


class Canned:
    """Answers by command; a command that is not there is refused."""

    def __init__(self, **answers: object) -> None:
        self.answers = {name.replace("_", "-"): answer for name, answer in answers.items()}
        self.asked: list[tuple[str, object]] = []

    def hmp(self, command: str) -> str:
        raise AssertionError("not asked here")

    def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        self.asked.append((command, arguments))
        if command not in self.answers:
            raise errors.MonitorRefused(command, "The command has not been found")
        return self.answers[command]

    def close(self) -> None:
        pass


OBJECTS = [
    {"name": "type", "type": "string"},
    {"name": "ram0", "type": "child<memory-backend-memfd>"},
    {"name": "lsec0", "type": "child<sev-guest>"},
]


def test_cbit_as_the_guest_was_told() -> None:
    monitor = Canned(qom_list=OBJECTS, qom_get=51, query_sev_capabilities={"cbitpos": 47})
    assert monitorfacts.cbit_position(monitor) == 51
    assert ("qom-get", {"path": "/objects/lsec0", "property": "cbitpos"}) in monitor.asked


@pytest.mark.parametrize("wrong", [0, 31, 52, -1, True, "51", None, 51.0, [51]])
def test_cbit_of_the_host_where_the_guests_is_not_told(wrong: object) -> None:
    monitor = Canned(qom_list=OBJECTS, qom_get=wrong, query_sev_capabilities={"cbitpos": 47, "pdh": "x"})
    assert monitorfacts.cbit_position(monitor) == 47
    assert monitorfacts.cbit_position(Canned(query_sev_capabilities={"cbitpos": wrong})) is None


@pytest.mark.parametrize(
    "objects", [None, [], {}, "x", [1, None, {}, {"name": 5, "type": "child<sev-guest>"}]]
)
def test_no_cbit_known(objects: object) -> None:
    assert monitorfacts.cbit_position(Canned(qom_list=objects, qom_get=51)) is None
    assert monitorfacts.cbit_position(Canned()) is None


def test_a_path_is_not_built_from_a_name_with_a_slash() -> None:
    monitor = Canned(qom_list=[{"name": "../machine", "type": "child<sev-guest>"}], qom_get=51)
    assert monitorfacts.cbit_position(monitor) is None
    assert [command for command, _ in monitor.asked] == ["qom-list", "query-sev-capabilities"]


def vcpu(index: object, tid: object) -> dict[str, object]:
    return {"thread-id": tid, "cpu-index": index, "props": {"core-id": 0}, "target": "x86_64"}


def test_vcpu_thread_ids() -> None:
    monitor = Canned(query_cpus_fast=[vcpu(1, 301), vcpu(0, 300)])
    assert list(monitorfacts.vcpu_thread_ids(monitor).items()) == [(0, 300), (1, 301)]
    assert monitorfacts.vcpu_thread_ids(Canned(query_cpus_fast=[])) == {}


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {},
        [1],
        [{}],
        [vcpu(0, 0)],
        [vcpu(0, -5)],
        [vcpu(-1, 5)],
        [vcpu(True, 5)],
        [vcpu(0, "5")],
        [vcpu(0, 5), vcpu(0, 6)],
        [vcpu(0, 1 << 64)],
        [vcpu(i, 5) for i in range(9000)],
    ],
)
def test_vcpu_thread_ids_that_are_none(answer: object) -> None:
    with pytest.raises(errors.ProtocolError):
        monitorfacts.vcpu_thread_ids(Canned(query_cpus_fast=answer))


SEV = {
    "enabled": True,
    "api-major": 1,
    "api-minor": 55,
    "build-id": 21,
    "state": "running",
    "policy": 5,
    "handle": 1,
}


def test_sev_info() -> None:
    assert monitorfacts.sev_info(Canned(query_sev=SEV)) == MonitorSev(True, False, "running", 5, (1, 55), 21)
    newer = {**SEV, "sev-type": "sev"}
    assert monitorfacts.sev_info(Canned(query_sev=newer)) == monitorfacts.sev_info(Canned(query_sev=SEV))


def test_sev_info_of_snp() -> None:
    answer = {key: value for key, value in SEV.items() if key not in ("policy", "handle")}
    snp = {**answer, "sev-type": "sev-snp", "snp-policy": 0x30000}
    assert monitorfacts.sev_info(Canned(query_sev=snp)) == MonitorSev(
        True, True, "running", None, (1, 55), 21
    )


def test_a_vmm_without_sev() -> None:
    assert monitorfacts.sev_info(Canned()) is None


@pytest.mark.parametrize("key", sorted(SEV.keys() - {"handle"}))
def test_sev_info_that_lacks_something(key: str) -> None:
    for answer in ({**SEV, key: None}, {name: value for name, value in SEV.items() if name != key}, [], None):
        if answer is None:
            continue  # means: not told
        with pytest.raises(errors.ProtocolError, match="query-sev"):
            monitorfacts.sev_info(Canned(query_sev=answer))


@pytest.mark.parametrize(
    "answer", [None, [], {}, {"status": 5}, {"status": "\x1b[2J"}, {"status": "x" * 1000}]
)
def test_run_state(answer: object) -> None:
    assert monitorfacts.run_state(Canned(query_status={"status": "paused", "running": False})) == "paused"
    with pytest.raises(errors.ProtocolError):
        monitorfacts.run_state(Canned(query_status=answer))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from([*SEV, "cpu-index", "cbitpos", "name"]), inner)
    ),
    max_leaves=8,
)
ASK: list[Callable[[Canned], object]] = [
    monitorfacts.cbit_position,
    monitorfacts.vcpu_thread_ids,
    monitorfacts.sev_info,
    monitorfacts.run_state,
]


@given(JSON, st.sampled_from(ASK))
def test_any_answer_is_understood_or_a_protocol_error(
    answer: object, ask: Callable[[Canned], object]
) -> None:
    commands = (
        "qom_list",
        "qom_get",
        "query_sev_capabilities",
        "query_cpus_fast",
        "query_sev",
        "query_status",
    )
    with suppress(errors.ProtocolError):
        ask(Canned(**dict.fromkeys(commands, answer)))
