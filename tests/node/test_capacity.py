"""Reading quotas and limits from cgroup files of both versions."""

import pytest

from omniserve_agent.node.capacity import memory_limits_bytes, quota_cores, read_capacity


@pytest.fixture
def cgroups(tmp_path):
    """Write `/proc/self/cgroup` and cgroup files; returns the two paths."""

    def write(proc, files):
        (tmp_path / "cgroup").write_text(proc)
        for name, text in files.items():
            path = tmp_path / "fs" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        return tmp_path / "cgroup", tmp_path / "fs"

    return write


@pytest.mark.parametrize(
    ("proc", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        ("0::/pod/box\n", {"pod/cpu.max": "200000 100000", "pod/box/cpu.max": "max 100000"}, 2.0),
        ("0::/pod/box\n", {"cpu.max": "100000 100000"}, 1.0),
        ("4:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "9"}, None),
        (
            "4:cpu,cpuacct:/box\n0::/\n",
            {"cpu/box/cpu.cfs_quota_us": "50000", "cpu/box/cpu.cfs_period_us": "100000"},
            0.5,
        ),
        ("", {}, None),
    ],
)
def test_quota(cgroups, proc, files, quota):
    assert quota_cores(*cgroups(proc, files)) == quota


@pytest.mark.parametrize(
    ("proc", "files", "limits"),
    [
        ("0::/box\n", {"box/memory.max": "max", "memory.max": "1024"}, [1024]),
        ("0::/box\n", {"box/memory.max": "512", "memory.max": "1024"}, [512, 1024]),
        ("4:memory:/box\n", {"memory/box/memory.limit_in_bytes": "77"}, [77]),
        ("5:cpu:/box\n", {"memory/box/memory.limit_in_bytes": "77"}, []),
    ],
)
def test_memory_limits(cgroups, proc, files, limits):
    assert memory_limits_bytes(*cgroups(proc, files)) == limits


def test_this_machine_has_something():
    capacity = read_capacity()
    assert capacity.cores
    assert capacity.memory_bytes > 1 << 27
