#!/usr/bin/env python3
"""Publishes a job to inferq over RabbitMQ and prints the reply. Needs pika: pip install pika.

Usage: rabbitmq.py [URL], such as amqp://guest:guest@localhost:5672/%2F
"""
import json
import sys
import uuid

import pika

url = sys.argv[1] if len(sys.argv) > 1 else "amqp://guest:guest@localhost:5672/%2F"
job = {"version": 1, "id": f"python-{uuid.uuid4()}", "inputs": ["first text", {"id": "doc-2", "text": "second text"}]}
with pika.BlockingConnection(pika.URLParameters(url)) as connection:
    channel = connection.channel()
    channel.confirm_delivery()  # without it a job that nobody took is lost silently
    durable = pika.BasicProperties(content_type="application/json", delivery_mode=pika.DeliveryMode.Persistent)
    channel.basic_publish("", "jobs", json.dumps(job), durable, mandatory=True)
    for method, _, body in channel.consume("jobs.results", inactivity_timeout=60):
        if method is None:
            sys.exit("no reply within a minute")
        reply = json.loads(body)
        if reply["id"] == job["id"]:
            channel.basic_ack(method.delivery_tag)
            print(json.dumps(reply))
            break
    channel.cancel()  # gives back what was another's
