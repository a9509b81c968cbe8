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
  inferq run --model ./all-MiniLM-L6-v2 --input t.parquet --column body --output vectors.jsonl
  inferq run --model ./all-MiniLM-L6-v2 --input gs://texts/t.jsonl --output gs://vectors/v.parquet

What it reads is told by `inferq submit --help`. Each row of the output is one line of the input,
in its order: {\"id\", \"index\", \"embedding\", \"tokens\"}, or {\"id\", \"index\", \"error\"} for a line or
text that can't be embedded (exit code 2); these are listed in vectors.failures.jsonl too. `inferq
collect --help` says more about the formats. After a crash or Ctrl-C the same command goes on. The
files it needs for that lie beside the output, or for an object in this directory, and go when it
is done. Buckets are reached with AWS_… and GOOGLE_… variables. A queue that others share is
not for run: use submit and collect.";

/// Ends `inferq setup --help`.
pub const SETUP: &str = "\
Example:
  inferq setup --queue 'sqlite:///var/lib/inferq/queue.db?queue=embeddings'
  inferq setup --queue 'amqp://user:password@host/vhost?queue=embeddings'
  inferq setup --queue 'pubsub://project/embeddings?subscription=fast' --exactly-once

It makes NAME (jobs), NAME.dead (dead letters) and NAME.results (replies that name no other
route). What is there already stays as it is; where Pub/Sub's is not as setup makes it, it says
how (exit code 64), and --update changes that.";

/// Ends `inferq submit --help`.
pub const SUBMIT: &str = "\
Examples:
  inferq submit --queue sqlite:///var/lib/inferq/queue.db --input texts.jsonl
  inferq submit --queue sqlite:queue.db --input 'in/*.jsonl.zst' --ledger in.db --on-bad-input fail
  inferq submit --queue sqlite:queue.db --input texts.parquet --column body --id-column key
  inferq submit --queue sqlite:queue.db --input jobs.jsonl --format jobs
  inferq submit --queue sqlite:queue.db --input large.jsonl --to gs://bucket/nightly/
  inferq submit --queue sqlite:queue.db --input gs://bucket/large.jsonl.gz --reply-uri gs://bucket/v/
  inferq submit --dry-run --input texts.jsonl --model ./all-MiniLM-L6-v2

A JSONL line is a string, an object {\"id\", \"text\"}, or a pair [\"query\", \"passage\"]; a text file
has one text a line. A text has 1 MiB at most. With --format jobs a line is a whole job
(docs/wire-format.md), published under its own id. An object (gs://, s3://, file:///) is not read
here: one job names it, workers read it, and split it if it is large. .gz and .zst after the extension are
decompressed. A line that is none of these, or too long, is listed on stderr and is no reason to
stop (exit code 2; collect writes why in its place), unless --on-bad-input fail says so. Ids that
stand twice are refused, with their lines, before anything is published; from stdin, which can't
be read twice, at its end. After a crash or Ctrl-C the same command goes on. It refuses an input
or flags that have changed.";

/// Ends `inferq collect --help`.
pub const COLLECT: &str = "\
Examples:
  inferq collect --ledger texts.jsonl.ledger.db --output vectors.parquet
  inferq collect --ledger texts.jsonl.ledger.db --output s3://bucket/vectors.parquet
  inferq collect --ledger texts.jsonl.ledger.db --output - --timeout-s 600 | head
  inferq collect --ledger texts.jsonl.ledger.db --output - --follow | my-importer
  python -c \"import polars; print(polars.read_parquet('vectors.parquet'))\"

Each row is one line of the input, in its order: {\"id\", \"index\", \"embedding\", \"tokens\"}, or {\"id\",
\"index\", \"error\": {\"code\", \"message\"}} (exit code 2). index counts the items from 0; an item
without an id of its own is called <job id>/<its place in the job>. Parquet has the columns id,
index, embedding (null where there is an error), tokens, error_code, error_message. The output
appears only when it is whole; with --follow it grows as replies come, whole jobs at a time in the
order of their coming. Replies are kept in the ledger, which you may delete when you have the
output. After a crash or Ctrl-C the same command goes on.";

/// Ends `inferq status --help`.
pub const STATUS: &str = "\
Examples:
  inferq status --queue sqlite:///var/lib/inferq/queue.db --watch
  inferq status --queue sqlite:///var/lib/inferq/queue.db --json | jq .work.seconds

tokens/s and items/s are what a worker computes while it is busy, by its last batches. The work
waiting is the tokens of the waiting jobs over the tokens/s of the workers that take jobs. A
worker that has not been heard of for a minute is gone. docs/operations.md describes the fields of
--json.";

/// Ends `inferq dead --help`.
pub const DEAD: &str = "\
Examples:
  inferq dead list    --queue sqlite:///var/lib/inferq/queue.db
  inferq dead show    --queue sqlite:///var/lib/inferq/queue.db KEY
  inferq dead redrive --queue sqlite:///var/lib/inferq/queue.db --reason reply_undeliverable";

/// Ends `inferq dead list --help`.
pub const DEAD_LIST: &str = "\
Examples:
  inferq dead list --queue sqlite:///var/lib/inferq/queue.db --reason malformed --newer-than 2h
  inferq dead list --queue sqlite:///var/lib/inferq/queue.db --json | jq -r .key

A key names a letter that has no id, or shares one. Nothing is leased or changed.";

/// Ends `inferq dead show --help`.
pub const DEAD_SHOW: &str = "\
Examples:
  inferq dead show --queue sqlite:///var/lib/inferq/queue.db 3f9a01bc22de
  inferq dead show --queue sqlite:///var/lib/inferq/queue.db --raw job-1 > job-1.json

What could act on the terminal is written as an escape, except with --raw.";

/// Ends `inferq dead redrive --help`.
pub const DEAD_REDRIVE: &str = "\
Examples:
  inferq dead redrive --queue sqlite:///var/lib/inferq/queue.db --reason no_worker --dry-run
  inferq dead redrive --queue sqlite:///var/lib/inferq/queue.db --id job-1

Each goes to the queue that it comes from, as if published now. It leaves the dead letters only
when that is confirmed: a crash in between may double a job, never lose one.";

/// Ends `inferq dead purge --help`.
pub const DEAD_PURGE: &str = "\
Examples:
  inferq dead purge --queue sqlite:///var/lib/inferq/queue.db --reason malformed --older-than 7d
  inferq dead purge --queue sqlite:///var/lib/inferq/queue.db --id 3f9a01bc22de --yes

It says how many are meant and asks. No more are deleted than it has named.";

/// Ends `inferq explain --help`.
pub const EXPLAIN: &str = "\
Examples:
  inferq explain --ledger texts.jsonl.ledger.db doc-17
  inferq explain --queue sqlite:///var/lib/inferq/queue.db --logs w*.log -- s0123456789ab-000042
  inferq explain --queue sqlite:///var/lib/inferq/queue.db --allow-read gs://bucket/vectors/ nightly

An item's own id is found only with the ledger. Queues are read through, page by page: some
seconds for a million messages. What could not be looked at is said at the end. Exit code 1:
nothing is known of it.";

/// Ends `inferq bench --help`.
pub const BENCH: &str = "\
Examples:
  inferq bench --queue sqlite:///var/lib/inferq/queue.db --rate 200 --duration-s 60
  inferq bench --queue sqlite:queue.db --rate 20 --text-tokens 8-64 --json load.json --svg load.svg

Jobs come at random instants, whether or not earlier ones are answered; a latency counts from the
instant at which the job was due, so it holds the wait that a stall causes. Exit code 2: some jobs
have no good answer.";

/// Ends `inferq completions --help`.
pub const COMPLETIONS: &str = "\
Examples:
  inferq completions bash > /etc/bash_completion.d/inferq
  inferq completions zsh > ~/.zfunc/_inferq
  inferq completions fish --program inferq-worker > ~/.config/fish/completions/inferq-worker.fish";

/// Ends `inferq man --help`.
pub const MAN: &str = "\
Examples:
  inferq man | man -l -
  inferq man /usr/local/share/man/man1";
