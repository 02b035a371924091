"""Print the fsspec URL of each file in the messages of the server."""

import sys

from posttroll.subscriber import Subscriber

for message in Subscriber([f"tcp://{sys.argv[1]}"], topics=["/remote"])(timeout=1):
    if message:
        for item in message.data.get("dataset", [message.data]):
            print(message.type, item["uri"], item["filesystem"]["cls"], flush=True)
