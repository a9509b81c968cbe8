//! Lines come whole and once, however their blocks and pieces are cut.

use std::convert::Infallible;

use inferq_shared::job::Input;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

type Seen = (u64, u64, u64, Vec<u8>, bool);

fn seen(line: &Line<'_>) -> Seen {
    (line.number, line.from, line.to, line.bytes().to_vec(), matches!(line.text, Text::TooLong(_)))
}

/// The lines of `bytes`, pushed in blocks that end at `cuts`.
fn split(splitter: &mut Splitter, bytes: &[u8], cuts: &[usize]) -> Vec<Seen> {
    let mut lines = Vec::new();
    let mut note = |line: Line<'_>| {
        lines.push(seen(&line));
        Ok::<(), Infallible>(())
    };
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).chain([bytes.len()]).collect();
    ends.sort_unstable();
    let mut from = 0;
    for end in ends {
        splitter.push(&bytes[from..end], &mut note).expect("nothing fails");
        from = end;
    }
    splitter.finish(&mut note).expect("nothing fails");
    lines
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        3 => Just(b"\n".to_vec()),
        1 => Just(b"\r\n".to_vec()),
        1 => Just(b"\xEF\xBB\xBF".to_vec()),
        5 => "[a-z \"]{0,12}".prop_map(String::into_bytes),
    ];
    vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn lines_do_not_depend_on_how_their_blocks_are_cut(bytes in bytes(), cuts in vec(any::<usize>(), 0..8)) {
        const LIMIT: usize = 10;
        let whole = split(&mut Splitter::new(0, 1, LIMIT), &bytes, &[]);
        prop_assert_eq!(&split(&mut Splitter::new(0, 1, LIMIT), &bytes, &cuts), &whole);
        // They tile the input, and no more is kept of any than the limit and a byte.
        let mut end = 0;
        for (number, (no, from, to, text, too_long)) in (1..).zip(&whole) {
            prop_assert_eq!((*no, *from), (number, end));
            prop_assert!(text.len() <= LIMIT + 1 && *too_long == (text.len() > LIMIT));
            end = *to;
        }
        prop_assert_eq!(end, bytes.len() as u64);
    }

    #[test]
    fn pieces_that_begin_with_a_line_have_the_lines_of_the_whole(bytes in bytes(), at in any::<prop::sample::Index>()) {
        let whole = split(&mut Splitter::new(0, 1, 10), &bytes, &[]);
        if !whole.is_empty() {
            let first = at.index(whole.len());
            let (number, from, ..) = whole[first];
            let (before, after) = bytes.split_at(from as usize);
            let mut pieces = split(&mut Splitter::new(0, 1, 10), before, &[]);
            pieces.extend(split(&mut Splitter::new(from, number, 10), after, &[]));
            prop_assert_eq!(pieces, whole);
        }
    }

    #[test]
    fn an_unfinished_line_takes_no_more_room_than_the_limit(blocks in vec(vec(any::<u8>(), 0..50), 0..20)) {
        let mut splitter = Splitter::new(0, 1, 32);
        for block in blocks {
            splitter.push(&block, |_| Ok::<(), Infallible>(())).expect("nothing fails");
            prop_assert!(splitter.held() <= 33);
        }
    }
}

fn read(text: &[u8]) -> Result<Item, ReplyError> {
    item(&Line { number: 7, from: 0, to: 0, text: Text::Whole(text) }, &Limits { input_bytes: 8, ..Limits::default() })
}

#[test]
fn a_line_is_a_text_an_object_or_a_pair() {
    let text = |text: &str| Input::Text(text.to_owned());
    assert_eq!(read(br#" "a" "#), Ok(Item { id: None, input: text("a") }));
    assert_eq!(read(br#"{"id":"d","text":"a","x":[1]}"#), Ok(Item { id: Some("d".to_owned()), input: text("a") }));
    let numbered = Item { id: Some("7".to_owned()), input: text("a") };
    assert_eq!(read(br#"{"id":7,"text":"a"}"#), Ok(numbered));
    let pair = Input::Pair("q".to_owned(), "p".to_owned());
    assert_eq!(read(br#"["q","p"]"#), Ok(Item { id: None, input: pair }));
}

#[test]
fn a_bad_line_is_an_error_with_its_number() {
    for (line, code, message) in [
        (&b"nonsense"[..], "malformed", "line 7: "),
        (b"7", "malformed", "line 7: not a JSON string, an object or a pair of strings: invalid type"),
        (b"{\"id\":\"a\"}", "malformed", "line 7: the object has no field \"text\""),
        (b"\"\xff\"", "malformed", "line 7: "),
        (b"\"123456789\"", "limit_exceeded", "line 7: the text has 9 bytes, the limit is 8"),
    ] {
        let error = read(line).expect_err("a bad line");
        assert!(error.code == code && error.message.starts_with(message), "{error:?}");
        assert!(error.message.len() < 400, "{error:?}");
    }
    let limits = Limits { input_bytes: 8, ..Limits::default() };
    let line = Line { number: 7, from: 0, to: 0, text: Text::TooLong(b"\"123") };
    let error = item(&line, &limits).expect_err("a long line");
    assert!(error.code == "limit_exceeded" && error.message.starts_with("line 7 has more than"), "{error:?}");
}
