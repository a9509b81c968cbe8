"""Writes ../fixtures/parity.json: texts, and what transformers and torch make of them.

Run in a virtual environment with `pip install torch transformers`, the model's directory as the argument:

    python make_parity.py "$(./fetch_model.sh)"

Each text runs alone, in float32, as sentence-transformers runs it: cut at 256 tokens, mean over the tokens of the
attention mask, then normalised. The token ids are kept too, so that a difference can be blamed on the right half.
"""

import base64
import json
import pathlib
import struct
import sys

import torch
import transformers

LIMIT = 256
LONG = "The tide tables for the harbour are printed every spring, and every spring somebody finds a mistake in them. "
TEXTS = [
    "Hello",
    "a",
    "A cat sits on the windowsill and watches the rain.",
    "The quick brown fox jumps over the lazy dog.",
    "How do I reset my password?",
    "What is the capital of Mongolia?",
    "Ulaanbaatar is the capital of Mongolia.",
    "Interest rates rose by a quarter of a point on Thursday.",
    "mRNA vaccines carry instructions, not the virus itself.",
    "e = mc^2, F = ma, and 1 + 1 = 2.",
    "",
    " ",
    "\t\n  \r\n ",
    "\u00a0\u2003\u3000",
    "😀",
    "🦀 Rust is fast 🚀🚀🚀 and the family 👨‍👩‍👧‍👦 agrees 👍🏽",
    "🇯🇵🇫🇷🇧🇷 ❤️‍🔥",
    "中文分词不用空格，模型按字切分。",
    "今天天气很好，我们去公园散步吧！",
    "日本語のテキストもあります。カタカナ、ひらがな、漢字。",
    "한국어 문장도 하나 있습니다.",
    "اللغة العربية تُكتب من اليمين إلى اليسار.",
    "مرحبا بالعالم، كيف حالك اليوم؟",
    "עברית גם כן מימין לשמאל.",
    "Ελληνικά γράμματα και τόνοι.",
    "Привет, мир! Как дела?",
    "हिन्दी में एक वाक्य।",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำ",
    "Crème brûlée, naïve façade, Ångström, Łódź, İstanbul, straße.",
    "e\u0301a\u0308o\u0302 are written with combining marks, Z\u0351\u036b\u0343a\u0363\u0348lgo too",
    "fn main() {\n    let x: Vec<u8> = (0..10).map(|i| i * 2).collect();\n    println!(\"{x:?}\");\n}",
    "SELECT id, name FROM users WHERE created_at > '2024-01-01' ORDER BY id DESC LIMIT 10;",
    "{\"key\": [1, 2.5e-3, null, true], \"nested\": {\"a\": \"b\\n\"}}",
    "https://example.org/a/b?c=d&e=f#g and mail@example.org",
    "control\u0000characters\u0001\u0007\u001b[31m are\u200b removed\ufeff or\u00ad kept\u007f",
    "\u0000\u0001\u0002",
    "\ufffd replacement and private use \ue000 \U000f0000",
    "spam " * 40,
    "ha" * 60,
    "x" * 99 + " " + "y" * 100 + " " + "z" * 101,
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "[CLS] text with [SEP] special [MASK] tokens [PAD] and [UNK] inside [SEP]",
    "!!!???...---___***+++~~~```^^^",
    "1234567890 3.14159265358979 1,000,000 0x7fff 1e-12 ½ ² Ⅷ ①",
    "A sentence.\nAnother line.\n\n\nA third, after blank lines.\tAnd a tab.",
    LONG.strip(),
    LONG * 5,
    LONG * 12,
    LONG * 60,
    "word " * 253 + "end",
    "word " * 254 + "end",
    "word " * 255 + "end",
    "长" * 400,
    "🎉" * 300,
    " ".join(["mixed", "混合", "смешанный", "مختلط", "🎨", "x = [1, 2]"] * 20),
    "ALL CAPITALS SHOULD BE THE SAME AS lower case",
    "all capitals should be the same as lower case",
    "I \u2018quote\u2019 \u201cthis\u201d \u2014 and that\u2026",
    "ﬁne ﬂoat ﬀ ligatures, ｆｕｌｌｗｉｄｔｈ, and \U0001d4d1\U0001d4f8\U0001d4f5\U0001d4ed mathematics",
    "The reply must name exactly what computed it, so that two results can be compared a year from now.",
]


def embed(model, ids: list[int]) -> list[float]:
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long))
    mean = hidden.last_hidden_state[0].mean(dim=0)
    return torch.nn.functional.normalize(mean, dim=0).tolist()


def main() -> None:
    directory = sys.argv[1]
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
    cases = []
    for text in TEXTS:
        ids = tokenizer(text, truncation=True, max_length=LIMIT, padding=False)["input_ids"]
        embedding = embed(model, ids)
        packed = base64.b64encode(struct.pack(f"<{len(embedding)}f", *embedding)).decode()
        cases.append({"text": text, "ids": ids, "embedding": packed})
    fixture = {
        "made_by": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "limit": LIMIT,
        "cases": cases,
    }
    target = pathlib.Path(__file__).parent.parent / "fixtures" / "parity.json"
    lines = json.dumps(fixture, ensure_ascii=True).replace('{"text"', '\n{"text"')
    target.write_text(lines + "\n")
    print(f"{len(cases)} texts, {target.stat().st_size} bytes")


main()
