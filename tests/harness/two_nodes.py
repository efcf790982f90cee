"""Two nodes on one machine: network namespaces, joined by a pair of virtual interfaces."""

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress

NAMES = ("cvattn0", "cvattn1")
ADDRESSES = ("10.77.26.1", "10.77.26.2")


class TwoNodes:
    """Makes them, and removes them in ``close()``; OSError or CalledProcessError: not here.

    It needs root. The file system is shared, unless a command is given a ``disk`` of its own.
    """

    def __init__(self) -> None:
        if os.geteuid() != 0:
            raise PermissionError("network namespaces need root")
        suffix = str(os.getpid())
        self.names = [f"{name}-{suffix}" for name in NAMES]
        self.links = [f"cv{suffix}-{number}"[:15] for number in range(2)]
        made = ["ip", "link", "add", self.links[0], "netns", self.names[0], "type", "veth", "peer"]
        try:
            for name in self.names:
                _do("ip", "netns", "add", name)
            _do(*made, "name", self.links[1], "netns", self.names[1])
            for name, link, address in zip(self.names, self.links, ADDRESSES, strict=True):
                self.inside(name, "ip", "addr", "add", f"{address}/24", "dev", link)
                self.inside(name, "ip", "link", "set", link, "up")
                self.inside(name, "ip", "link", "set", "lo", "up")
        except (OSError, subprocess.CalledProcessError):
            self.close()
            raise

    def command(self, node: int, command: Sequence[str], disk: str = "") -> list[str]:
        """The command, run on that node; with an empty ``disk`` (a folder) of its own."""
        on = ["ip", "netns", "exec", self.names[node]]
        if disk:
            on += ["sh", "-c", f'mount -t tmpfs none {disk} && cd {disk} && exec "$@"', "sh"]
        return [*on, *command]

    def variables(self, node: int) -> dict[str, str]:
        """Which interface gloo is to use: names of hosts mean nothing here."""
        return {"GLOO_SOCKET_IFNAME": self.links[node]}

    def inside(self, name: str, *command: str) -> None:
        _do("ip", "netns", "exec", name, *command)

    def cut(self) -> None:
        """The network is gone, and nobody is told."""
        self.inside(self.names[1], "ip", "link", "set", self.links[1], "down")

    def mend(self) -> None:
        """It is there again."""
        self.inside(self.names[1], "ip", "link", "set", self.links[1], "up")

    def kill(self, node: int) -> None:
        """All that runs on the node ends at once."""
        for pid in _do("ip", "netns", "pids", self.names[node]).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def sent(self, node: int) -> int:
        """Bytes that the node has sent to the other one."""
        path = f"/sys/class/net/{self.links[node]}/statistics/tx_bytes"
        found = _do("ip", "netns", "exec", self.names[node], "cat", path)
        return int(found)

    def close(self) -> None:
        """What runs in them ends first."""
        for node, name in enumerate(self.names):
            with suppress(subprocess.CalledProcessError):
                self.kill(node)
                _do("ip", "netns", "del", name)


def _do(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
