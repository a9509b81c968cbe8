#!/usr/bin/env python3
"""Publishes a job to inferq over Google Pub/Sub and prints the reply. Needs Google's client: pip install google-cloud-pubsub.

Usage: pubsub.py PROJECT [TOPIC], with the credentials of the environment, or PUBSUB_EMULATOR_HOST
"""
import json
import sys
import time
import uuid

from google.api_core.exceptions import DeadlineExceeded
from google.cloud import pubsub_v1

project, topic = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "jobs"
job = {"version": 1, "id": f"python-{uuid.uuid4()}", "inputs": ["first text", {"id": "doc-2", "text": "second text"}]}
publisher, subscriber = pubsub_v1.PublisherClient(), pubsub_v1.SubscriberClient()
sent = publisher.publish(publisher.topic_path(project, topic), json.dumps(job).encode(), **{"content-type": "application/json"})
sent.result(timeout=60)  # until then it may be lost

results = subscriber.subscription_path(project, f"{topic}.results")
until = time.monotonic() + 60
while time.monotonic() < until:
    try:
        received = subscriber.pull(subscription=results, max_messages=10, timeout=10).received_messages
    except DeadlineExceeded:
        continue
    replies = {message.ack_id: json.loads(message.message.data) for message in received}
    ours = [ack_id for ack_id, reply in replies.items() if reply["id"] == job["id"]]
    if others := replies.keys() - ours:  # given back at once
        subscriber.modify_ack_deadline(subscription=results, ack_ids=list(others), ack_deadline_seconds=0)
    if ours:
        subscriber.acknowledge(subscription=results, ack_ids=ours)
        print(json.dumps(replies[ours[0]]))
        break
else:
    sys.exit("no reply within a minute")
