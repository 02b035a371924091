"""Prints what the server tells: where each file can be read, as fsspec sees it."""

import sys

from posttroll.subscriber import Subscriber

for message in Subscriber([f"tcp://{sys.argv[1]}"], topics=["/remote"])(timeout=1):
    if message:
        for item in message.data.get("dataset", [message.data]):
            print(message.type, item["uri"], item["filesystem"]["cls"], flush=True)
