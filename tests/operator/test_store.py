"""What events and lists leave of each other in the operator's picture."""

from omniserve_operator.api import SERVICES
from omniserve_operator.freshness import Freshness
from omniserve_operator.settings import Settings
from omniserve_operator.store import Store


def test_a_list_under_way_does_not_bring_back_what_was_deleted_meanwhile():
    store = Store(Settings("omniserve"), Freshness(0))
    pod = {"metadata": {"namespace": "omniserve", "name": "a", "resourceVersion": "5"}}
    store.put(SERVICES, pod, 0)
    gone = {"metadata": {**pod["metadata"], "resourceVersion": "8"}}
    store.drop(SERVICES, gone)
    store.replace(SERVICES, [pod], "7", 0)
    assert store.child(SERVICES, "omniserve", "a") is None
    store.replace(SERVICES, [], "9", 0)
    new = {"metadata": {**pod["metadata"], "resourceVersion": "10"}}
    store.put(SERVICES, new, 0)
    store.drop(SERVICES, gone)  # late: it was made anew since
    assert store.child(SERVICES, "omniserve", "a") == new
