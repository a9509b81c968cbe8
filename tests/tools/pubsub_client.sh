#!/bin/sh
# Prints a python with Google's own client of Pub/Sub for it.
exec "$(dirname "$0")/venv.sh" google-cloud-pubsub 2.44.0
