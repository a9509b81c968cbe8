//! Tests of the tokenizers.

use super::*;

/// A word-piece tokenizer file as Hugging Face writes them, with padding and truncation that must be overridden.
const TINY: &str = r###"{
  "version": "1.0",
  "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
  "padding": {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0,
              "pad_token": "[PAD]"},
  "added_tokens": [],
  "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
                 "lowercase": true},
  "pre_tokenizer": {"type": "BertPreTokenizer"},
  "post_processor": {"type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
               {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
    "pair": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
             {"SpecialToken": {"id": "[SEP]", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}},
             {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
    "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                       "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}},
  "decoder": null,
  "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
            "vocab": {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "one": 4, "two": 5, "three": 6, "##s": 7}}
}"###;

fn tiny(max_tokens: usize) -> Tokenizer {
    Tokenizer::from_file(TINY.as_bytes(), max_tokens, false).unwrap()
}

fn text(text: &str) -> Input {
    Input::Text(text.to_owned())
}

#[test]
fn the_files_own_padding_and_truncation_are_overridden() {
    let tokens = tiny(16).encode(&text("one Twos three one two"), false).unwrap();
    assert_eq!(tokens.ids, [2, 4, 5, 7, 6, 4, 5, 3]);
    assert_eq!(tokens.type_ids, [0; 8]);
}

#[test]
fn an_empty_text_has_its_special_tokens() {
    for empty in ["", " \t\n", "\u{0}"] {
        assert_eq!(tiny(16).encode(&text(empty), false).unwrap().ids, [2, 3], "{empty:?}");
    }
}

#[test]
fn a_too_long_text_is_cut_or_refused_with_count_and_limit() {
    let tokenizer = tiny(5);
    assert_eq!(tokenizer.encode(&text("one two three one two"), true).unwrap().ids, [2, 4, 5, 6, 3]);
    let refused = tokenizer.encode(&text("one two three one two"), false);
    assert_eq!(refused, Err(TokenizeError::TooLong { tokens: 7, limit: 5 }));
    assert_eq!(tokenizer.encode(&text("one two three"), false).unwrap().ids.len(), 5);
}

#[test]
fn a_pair_has_types_and_its_longer_half_is_cut_first() {
    let pair = |query: &str, passage: &str| Input::Pair(query.to_owned(), passage.to_owned());
    let tokens = tiny(16).encode(&pair("one", "two three"), false).unwrap();
    assert_eq!(tokens.ids, [2, 4, 3, 5, 6, 3]);
    assert_eq!(tokens.type_ids, [0, 0, 0, 1, 1, 1]);
    let cut = tiny(7).encode(&pair("one", &"two three ".repeat(1000)), true).unwrap();
    assert_eq!(cut.ids, [2, 4, 3, 5, 6, 5, 3]);
}

#[test]
fn a_window_of_a_long_text_has_the_tokens_of_the_whole() {
    let words = ["one", "twos", "unknown", "\u{1f980}", "three,", "a\u{301}\u{301}", "\n\n", "中文", "[SEP]"];
    let mut long = String::new();
    for i in 0..5_000usize {
        long.push_str(words[i * i % words.len()]);
        long.push_str([" ", "\t", "   ", "\r\n"][i % 4]);
    }
    for limit in [3, 10, 100, 256] {
        let cut = tiny(limit).encode(&text(&long), true).unwrap().ids;
        let mut whole = tiny(usize::MAX).encode(&text(&long), false).unwrap().ids;
        whole.truncate(limit - 1);
        whole.push(3);
        assert_eq!(cut, whole, "limit {limit}");
    }
}

#[test]
fn a_window_grows_until_there_are_tokens_enough() {
    let sparse = format!("{}one{}two", " ".repeat(100_000), " ".repeat(100_000));
    assert_eq!(tiny(5).encode(&text(&sparse), true).unwrap().ids, [2, 4, 5, 3]);
}

#[test]
fn the_largest_texts_of_any_kind_become_tokens() {
    let mebibyte = 1024 * 1024;
    let tokenizer = tiny(256);
    for piece in
        ["a", " ", "one ", "\u{301}", "a\u{301}", "\u{0}", "中", ",", "\u{1f469}\u{200d}", "[SEP]", "\u{1100}\u{1161}"]
    {
        let long = piece.repeat(mebibyte / piece.len());
        let tokens = tokenizer.encode(&text(&long), true).unwrap();
        assert!((2..=256).contains(&tokens.ids.len()), "{piece:?}: {}", tokens.ids.len());
        match tokenizer.encode(&text(&long), false) {
            Ok(all) => assert_eq!(all, tokens, "{piece:?}"),
            Err(error) => assert!(matches!(error, TokenizeError::TooLong { limit: 256, .. }), "{piece:?}: {error}"),
        }
    }
}

#[test]
fn with_lowercase_the_text_is_lowercased_first() {
    let json = TINY.replace(r#""lowercase": true"#, r#""lowercase": false"#);
    let plain = Tokenizer::from_file(json.as_bytes(), 16, false).unwrap();
    let lowered = Tokenizer::from_file(json.as_bytes(), 16, true).unwrap();
    assert_eq!(plain.encode(&text("ONE"), false).unwrap().ids, [2, 1, 3]);
    assert_eq!(lowered.encode(&text("ONE"), false).unwrap().ids, [2, 4, 3]);
}

#[test]
fn bytes_that_are_no_tokenizer_are_an_error() {
    for bytes in ["", "{}", "[1]", "not json"] {
        assert!(matches!(Tokenizer::from_file(bytes.as_bytes(), 16, false), Err(TokenizeError::Failed(_))), "{bytes}");
    }
    assert!(Tokenizer::from_file(TINY.as_bytes(), 2, false).is_err());
}

#[test]
fn words_are_hashed_the_same_everywhere() {
    let tokens = Tokenizer::words(8).encode(&text(" a  foobar\ta "), false).unwrap();
    assert_eq!(tokens.ids, [LEADING, 0xe40c_292c, 0xbf9c_f968, 0xe40c_292c]);
    assert_eq!(tokens.type_ids, [0; 4]);
}

#[test]
fn words_of_nothing_are_one_token_and_long_texts_are_cut_or_refused() {
    let tokenizer = Tokenizer::words(3);
    assert_eq!(tokenizer.encode(&text(""), false).unwrap().ids, [LEADING]);
    assert_eq!(tokenizer.encode(&text("a b c"), true).unwrap().ids.len(), 3);
    assert_eq!(tokenizer.encode(&text("a b c"), false), Err(TokenizeError::TooLong { tokens: 4, limit: 3 }));
    let pair = Input::Pair("a".to_owned(), "b".to_owned());
    assert_eq!(tokenizer.encode(&pair, false).unwrap().type_ids, [0, 0, 1]);
}

#[test]
fn one_tokenizer_serves_many_threads() {
    fn shared<T: Send + Sync>(_: &T) {}
    shared(&tiny(16));
}
