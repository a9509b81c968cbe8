#!/bin/sh
# Prints a python with pika, RabbitMQ's own client for it.
exec "$(dirname "$0")/venv.sh" pika 1.4.4
