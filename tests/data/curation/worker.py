"""`python worker.py RECIPE SPOIL`: the command with something in its way, for tests of what then happens."""

import os
import resource
import signal
import socket
import sys

from data import cli, curate


def no_network():
    """Sockets that reach anything but this machine's own processes raise."""

    def refuse(*_, **__):
        raise OSError("the network was touched")

    original = socket.socket.connect

    def connect(self, address):
        return original(self, address) if self.family == socket.AF_UNIX else refuse()

    socket.socket.connect = connect
    socket.getaddrinfo = refuse


def killed_at(step: str):
    """The process kills itself, as kill -9 does, as the second task of a step has half written its documents."""
    from data.curation import documents

    original = documents._line
    seen = []

    def line(document):
        folder = sys._getframe(1).f_locals["self"].folder
        if f"{step}/" in folder and sys._getframe(1).f_locals["rank"] == 1:
            seen.append(document)
            if len(seen) == 5:
                os.kill(os.getpid(), signal.SIGKILL)
        return original(document)

    documents._line = line


def small_files(size: str):
    """No file may grow beyond `size` bytes: what ulimit -f does."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size)))


SPOILERS = {"nothing": lambda: None, "no_network": no_network, "killed_at": killed_at, "small_files": small_files}

if __name__ == "__main__":
    recipe, spoil, *rest = sys.argv[1:]
    SPOILERS[spoil](*rest)
    sys.exit(cli.exit_code(curate.main, ["--config", recipe]))
