#!/bin/sh
# Prints a python with moto, a server that speaks S3.
exec "$(dirname "$0")/venv.sh" moto 5.2.1 "[server]"
