"""The chart's objects as helm renders them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts/omniserve"
NAMESPACE = "omniserve-system"
HELM_TIMEOUT_S = 60
ADMISSION = "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy"
MONITORING = tuple(
    f"monitoring.coreos.com/v1/{kind}"
    for kind in ("ServiceMonitor", "PodMonitor", "PrometheusRule")
)


@dataclass(frozen=True)
class Rendered:
    """What `helm template` wrote: every object, tests and CRDs included."""

    objects: tuple[dict, ...]

    def of(self, kind: str) -> list[dict]:
        return [o for o in self.objects if o["kind"] == kind]

    def one(self, kind: str, name: str) -> dict:
        found = [o for o in self.of(kind) if o["metadata"]["name"] == name]
        assert len(found) == 1, f"{kind} {name}: {len(found)} of them"
        return found[0]

    def pod_specs(self) -> dict[str, dict]:
        """Kind/name to pod spec, of everything that makes pods."""
        return {
            f"{o['kind']}/{o['metadata']['name']}": o["spec"]
            if o["kind"] == "Pod"
            else o["spec"]["template"]["spec"]
            for o in self.objects
            if o["kind"] in ("Pod", "Deployment", "DaemonSet", "StatefulSet", "Job")
        }


Render = Callable[..., Rendered]
