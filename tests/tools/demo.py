#!/usr/bin/env python3
"""Prints, for every `query-…` of the demo, the nearest sentences with their cosine similarity.

In: the sentences that went into `inferq run` (JSON lines of id and text) and the vectors that came out (JSON lines of id
and embedding). Only the standard library; the vectors have length 1, so that a dot product is the cosine.
"""

import json
import sys

NEAREST = 4


def lines(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def main(sentences_path, vectors_path):
    texts = {line["id"]: line["text"] for line in lines(sentences_path)}
    vectors = {}
    for line in lines(vectors_path):
        if "embedding" not in line:
            sys.exit(f"demo: {line['id']} has no embedding: {line.get('error')}")
        vectors[line["id"]] = line["embedding"]
    missing = texts.keys() - vectors.keys()
    if missing:
        sys.exit(f"demo: no vector for {', '.join(sorted(missing))}")

    sentences = [key for key in texts if not key.startswith("query-")]
    for query in (key for key in texts if key.startswith("query-")):
        scores = [(sum(map(float.__mul__, vectors[query], vectors[key])), key) for key in sentences]
        print(f"\n{texts[query]}")
        for score, key in sorted(scores, reverse=True)[:NEAREST]:
            print(f"  {score:.3f}  {texts[key]}  [{key}]")
    print(f"\n{len(vectors)} vectors lie in {vectors_path}")


if __name__ == "__main__":
    main(*sys.argv[1:])
