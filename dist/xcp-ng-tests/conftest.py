"""Options and fixtures for running vgpu/ without XCP-ng's own test harness.

Inside of xcp-ng-tests its own conftest.py has these, with the same names, so this file stays here.
"""

from types import SimpleNamespace

import pytest


def pytest_addoption(parser):
    parser.addoption("--hosts", action="append", default=[], help="address of a Xen host's dom0")
    parser.addoption("--vm", action="append", default=[], help="address of a running Linux guest of that host")


def pytest_configure(config):
    config.addinivalue_line("markers", "small_vm: a small Linux guest is enough")
    config.addinivalue_line("markers", "reboot: reboots the host")


@pytest.fixture(scope="session")
def host(request):
    hosts = ",".join(request.config.getoption("--hosts")).split(",")
    if not hosts[0]:
        pytest.fail("no host: give --hosts=ADDRESS")
    return SimpleNamespace(hostname_or_ip=hosts[0])


@pytest.fixture(scope="session")
def running_unix_vm(request):
    guests = request.config.getoption("--vm")
    if not guests:
        pytest.fail("no guest: give --vm=ADDRESS of one that runs")
    return SimpleNamespace(ip=guests[0])
