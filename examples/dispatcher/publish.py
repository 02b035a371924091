"""Create three files and publish messages about them, as a processing chain does."""

from __future__ import annotations

import argparse
import datetime as dt
import time
from pathlib import Path

import zmq
from posttroll.message import Message

PRODUCTS = Path("products")
START = dt.datetime(2025, 1, 2, 3, 4)  # noqa: DTZ001  (messages contain UTC times without a time zone)


def main() -> None:
    """Create files, wait for a dispatcher, and publish the messages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9040, help="port to publish on (%(default)s)")
    arguments = parser.parse_args()
    publisher: zmq.Socket[bytes] = zmq.Context().socket(zmq.XPUB)
    publisher.bind(f"tcp://*:{arguments.port}")
    messages = [make(product) for product in ("overview", "fog", "ash")]
    print("waiting for a dispatcher")
    publisher.recv()  # its subscription
    for message in messages:
        print(message)
        publisher.send_string(message)
    time.sleep(1)  # so that ZeroMQ sends the messages before the exit


def make(product: str) -> str:
    """Create a file; return the message about it."""
    PRODUCTS.mkdir(exist_ok=True)
    path = PRODUCTS.absolute() / f"{START:%Y%m%d_%H%M}_{product}.png"
    if not path.exists():
        path.write_text(f"a picture of {product}")
    data = {
        "uri": str(path),
        "uid": path.name,
        "product": product,
        "platform_name": "npp",
        "format": "png",
        "sunzen": 42.5,
        "start_time": START,
    }
    message = str(Message(f"/level2/viirs/{product}", "file", data))
    path.with_suffix(".message").write_text(message)
    return message


if __name__ == "__main__":
    main()
