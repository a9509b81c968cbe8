//! The examples and exit codes at the end of `--help`.

/// Ends `inferq --help`.
pub const MAIN: &str = "\
Example, all on this machine:
  inferq run --model ./all-MiniLM-L6-v2 --input texts.jsonl --output vectors.jsonl

Example, with workers elsewhere:
  inferq setup   --queue sqlite:///var/lib/inferq/queue.db
  inferq submit  --queue sqlite:///var/lib/inferq/queue.db --input texts.jsonl
  inferq collect --ledger texts.jsonl.ledger.db --output vectors.jsonl

Exit codes: 0 done; 2 done, and some items have an error instead of a result; 64 flags, files or
queues can't be used as they are; 75 collect timed out; 1 anything else.";

/// Ends `inferq run --help`.
pub const RUN: &str = "\
Examples:
  inferq run --model ./all-MiniLM-L6-v2 --input texts.jsonl --output vectors.jsonl
  inferq run --model ./all-MiniLM-L6-v2 --input 'in/*.txt.gz' --output vectors.parquet
  inferq run --model ./all-MiniLM-L6-v2 --input t.parquet --column body --id-column key --output vectors.jsonl

What it reads is told by `inferq submit --help`.
Each row of the output is one line of the input, in its order: {\"id\", \"index\", \"embedding\", \"tokens\"},
or {\"id\", \"index\", \"error\"} for a line or text that can't be embedded (exit code 2); these are listed
in vectors.failures.jsonl too. `inferq collect --help` says more about the formats.
After a crash or Ctrl-C the same command goes on. The files it needs for that lie beside the output
and go when it is done. A queue that others share is not for run: use submit and collect.";

/// Ends `inferq setup --help`.
pub const SETUP: &str = "\
Example:
  inferq setup --queue 'sqlite:///var/lib/inferq/queue.db?queue=embeddings'

It makes NAME (jobs), NAME.dead (dead letters) and NAME.results (replies that name no other route).
What is there already stays as it is.";

/// Ends `inferq submit --help`.
pub const SUBMIT: &str = "\
Examples:
  inferq submit --queue sqlite:///var/lib/inferq/queue.db --input texts.jsonl
  inferq submit --queue sqlite:queue.db --input 'in/*.jsonl.zst' --ledger in.db --on-bad-input fail
  inferq submit --queue sqlite:queue.db --input texts.parquet --column body --id-column key
  inferq submit --queue sqlite:queue.db --input jobs.jsonl --format jobs
  inferq submit --dry-run --input texts.jsonl --model ./all-MiniLM-L6-v2

A JSONL line is a string, an object {\"id\", \"text\"}, or a pair [\"query\", \"passage\"]; a text file has one
text a line. A text has 1 MiB at most. With --format jobs a line is a whole job (docs/wire-format.md),
published under its own id. .gz and .zst after the extension are decompressed.
A line that is none of these, or too long, is listed on stderr and is no reason to stop (exit code 2;
collect writes why in its place), unless --on-bad-input fail says so.
Ids that stand twice are refused, with their lines, before anything is published; from stdin, which
can't be read twice, at its end.
After a crash or Ctrl-C the same command goes on. It refuses an input or flags that have changed.";

/// Ends `inferq collect --help`.
pub const COLLECT: &str = "\
Examples:
  inferq collect --ledger texts.jsonl.ledger.db --output vectors.parquet
  inferq collect --ledger texts.jsonl.ledger.db --output - --timeout-s 600 | head
  inferq collect --ledger texts.jsonl.ledger.db --output - --follow | my-importer
  python -c \"import polars; print(polars.read_parquet('vectors.parquet'))\"

Each row is one line of the input, in its order: {\"id\", \"index\", \"embedding\", \"tokens\"}, or
{\"id\", \"index\", \"error\": {\"code\", \"message\"}} (exit code 2). index counts the items from 0; an item
without an id of its own is called <job id>/<its place in the job>. Parquet has the columns id, index,
embedding (null where there is an error), tokens, error_code, error_message.
The output appears only when it is whole; with --follow it grows as replies come, whole jobs at a time
in the order of their coming. Replies are kept in the ledger, which you may delete when you have the
output. After a crash or Ctrl-C the same command goes on.";

/// Ends `inferq status --help`.
pub const STATUS: &str = "\
Examples:
  inferq status --queue sqlite:///var/lib/inferq/queue.db --watch
  inferq status --queue sqlite:///var/lib/inferq/queue.db --json | jq '.queues[0].waiting'";
