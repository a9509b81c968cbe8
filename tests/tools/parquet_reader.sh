#!/bin/sh
# Prints a python with DuckDB, the smallest wheel that reads Parquet.
exec "$(dirname "$0")/venv.sh" duckdb 2.0.0
