"""What `plan --dry-run` says."""

from dataclasses import replace

from omniserve_crds.llmservice import LLMService
from omniserve_operator.dryrun import answer
from omniserve_operator.placement.plan import plan
from omniserve_operator.settings import Tenancy
from support.clusters import changed, figures, named, node, service, settled, with_node, world


def manifest(subject, **spec):
    body = subject.spec.model_dump(by_alias=True, exclude_none=True, mode="json") | spec
    return LLMService.model_validate(
        {
            "apiVersion": "omniserve.io/v1alpha1",
            "kind": "LLMService",
            "metadata": {"name": subject.name, "namespace": subject.namespace},
            "spec": body,
        }
    )


CHAT = service("chat")


def busy(**measured):
    before = settled(world([CHAT], [node("n3")]), plan)
    return with_node(before, figures(named(before, "n3"), "cuda:0", **measured))


def test_what_it_would_add_to_whom():
    found = answer(busy(iteration_micros=34_000, row_micros=4_000), [manifest(service("second"))])
    assert found.placed
    assert found.lines == (
        "default/second: n3/cuda:0: joins the engine of default/chat: adds 4 ms to default/chat's "
        "TPOT (34 to 38 of 50 ms)",
    )


def test_what_it_would_break():
    found = answer(busy(iteration_micros=49_000, row_micros=4_000), [manifest(service("second"))])
    assert not found.placed
    assert found.lines[0].startswith(
        "default/second: refused: WouldBreakNeighbourSLO: 0 of 1 replicas have a device"
    )
    assert "default/chat's TPOT would be 53 ms of 50 ms" in found.lines[0]


def test_a_change_of_what_runs():
    before = settled(world([CHAT], [node("n1"), node("n2")]), plan)
    found = answer(before, [manifest(CHAT, model={"uri": "hf://org/other"})])
    assert found.placed
    assert found.lines[0].startswith("default/chat: n2/cuda:0: the device is empty")
    assert found.lines[1] == (
        "default/chat: leaves n1/cuda:0: goes: the model or its settings changed"
    )


def test_side_effects_on_others_are_told():
    waiting = service("waiting", model={"uri": "hf://org/other"}, priority=1)
    before = world([waiting], [node("n1")])
    urgent = manifest(service("urgent", model={"uri": "hf://org/third"}, priority=2))
    found = answer(before, [urgent])
    assert "default/waiting: no device instead of n1/cuda:0" in found.lines


def test_a_class_that_is_not_allowed():
    found = answer(
        replace(world([], [node("n1")]), default_tenancy=Tenancy(classes=frozenset())),
        [manifest(CHAT)],
    )
    assert not found.placed
    assert found.lines[0].startswith("default/chat: refused: ClassNotAllowed: spec.class: is LS")


def test_pausing():
    before = settled(world([CHAT], [node("n1")]), plan)
    found = answer(before, [manifest(changed(CHAT, state="Paused"))])
    assert found.lines == ("default/chat: leaves n1/cuda:0: goes: 0 replicas are wanted",)
