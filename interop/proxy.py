"""A TCP proxy that cuts connections, as a network does: at any byte, without a farewell."""

from __future__ import annotations

import socket
import threading
from typing import Any, Optional
from urllib.parse import urlsplit

_AT_ONCE = 64 << 10


class CuttingProxy:
    """Passes bytes on to the bus at `target`, and cuts each connection after `cut_after` bytes of
    its response, or never."""

    def __init__(self, target: str, cut_after: Optional[int] = None) -> None:
        parts = urlsplit(target)
        self.target = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.cut_after = cut_after
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return  # The listener was closed.
            self.connections += 1
            bus = socket.create_connection(self.target)
            threading.Thread(target=_pass, args=(client, bus, None), daemon=True).start()
            threading.Thread(target=_pass, args=(bus, client, self.cut_after), daemon=True).start()

    def __enter__(self) -> CuttingProxy:
        return self

    def __exit__(self, *_: Any) -> None:
        self.listener.close()


def _pass(source: socket.socket, sink: socket.socket, cut_after: Optional[int]) -> None:
    left = cut_after
    try:
        while left is None or left > 0:
            data = source.recv(_AT_ONCE if left is None else min(left, _AT_ONCE))
            if not data:
                break
            sink.sendall(data)
            left = None if left is None else left - len(data)
    except OSError:
        pass  # The other direction was cut first.
    for end in (source, sink):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        end.close()
