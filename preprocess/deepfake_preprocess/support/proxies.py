"""Which proxy of the environment stands before a host. Nothing on this machine is asked through one."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from urllib.request import proxy_bypass


def is_loopback(host: str) -> bool:
    """Return whether a host's name or address is always this machine."""
    name = host.strip("[]").rstrip(".").lower()
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def through_proxy(host: str, variables: Sequence[str]) -> str:
    """Return in words that a host is asked through a proxy, to end a message with; empty where it is not.

    `variables` are those of the environment that whoever connects reads, the first one first.
    """
    named = next((name for name in variables if os.environ.get(name)), None)
    if named is None or is_loopback(host) or proxy_bypass(host):
        return ""
    proxy = re.sub(r"//[^/@]*@", "//", os.environ[named])
    return f"; it is asked through the proxy {proxy} ({named} in the environment), which no_proxy={host} avoids"
