"""A container that is granted less than the machine has is not taken for the machine."""

import os

import pytest

from deepfake_preprocess.support import machine
from deepfake_preprocess.support.machine import usable_cores, usable_memory

MEMORY_BYTES = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.fixture
def cgroup(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    return tmp_path


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("max 100000\n", 4),
        ("200000 100000\n", 2),
        ("50000 100000\n", 1),
        ("800000 100000\n", 4),
        ("another format", 4),
    ],
)
def test_cores_are_those_of_the_cpu_set_or_fewer_where_a_cgroup_limits_the_time(cgroup, text, cores):
    (cgroup / "cpu.max").write_text(text)
    assert usable_cores() == cores


@pytest.mark.parametrize(("text", "expected"), [("max\n", MEMORY_BYTES), ("1048576\n", 2**20)])
def test_memory_is_the_machines_or_what_a_cgroup_leaves(cgroup, text, expected):
    (cgroup / "memory.max").write_text(text)
    assert usable_memory() == expected


def test_without_a_cgroup_all_is_usable(cgroup):
    assert (usable_cores(), usable_memory()) == (4, MEMORY_BYTES)
