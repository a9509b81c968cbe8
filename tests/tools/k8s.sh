#!/bin/sh
# Prints a python with the schemas of Kubernetes' own kinds for it, and with jsonschema and PyYAML, which that brings along.
exec "$(dirname "$0")/venv.sh" kubernetes-validate 1.37.0
