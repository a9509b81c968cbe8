//! Other people's bytes as text that is safe on a terminal, in a table or as a whole.
//!
//! In: bytes or text from anybody. Out: the same text with every control, bidirectional and invisible character and
//! every byte that is no UTF-8 written as an escape, so that nothing in it can move the cursor, change a colour, hide
//! or reorder what stands beside it. Pure.

use std::fmt::Write as _;

/// One line, of at most so many characters; what is cut off leaves a `…`.
pub fn line(bytes: &[u8], characters_max: usize) -> String {
    // No character has more than four bytes, so no more of a long body is looked at.
    let looked_at = bytes.len().min(characters_max.saturating_mul(4));
    let text = escaped(&bytes[..looked_at], false);
    if looked_at == bytes.len() && text.chars().count() <= characters_max {
        return text;
    }
    let kept = text.chars().take(characters_max.saturating_sub(1));
    kept.chain(['…']).collect()
}

/// All of it; its line ends stay line ends.
pub fn block(bytes: &[u8]) -> String {
    escaped(bytes, true)
}

fn escaped(bytes: &[u8], lines: bool) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\n' if lines => text.push('\n'),
                '\t' if lines => text.push('\t'),
                c if is_plain(c) => text.push(c),
                c => text.extend(c.escape_default()),
            }
        }
        for byte in chunk.invalid() {
            write!(text, "\\x{byte:02x}").expect("a string can be written to");
        }
    }
    text
}

/// Whether a character only shows itself. See <https://www.unicode.org/reports/tr36/#Bidirectional_Text_Spoofing>.
fn is_plain(c: char) -> bool {
    let invisible = matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
    !c.is_control() && !invisible
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_could_act_on_a_terminal_is_spelled_out() {
        let hostile = b"\x1b[31mred\x07\r\nnext\t\x00\xff\xe2\x80\xaetxt";
        assert_eq!(line(hostile, 100), "\\u{1b}[31mred\\u{7}\\r\\nnext\\t\\u{0}\\xff\\u{202e}txt");
        assert_eq!(block(b"a\nb\r\n\x1b"), "a\nb\\r\n\\u{1b}");
        assert_eq!(line("größe 日本".as_bytes(), 100), "größe 日本");
    }

    #[test]
    fn a_long_text_is_cut_with_a_mark() {
        assert_eq!(line(b"abcdef", 6), "abcdef");
        assert_eq!(line(b"abcdefg", 6), "abcde…");
        assert_eq!(line(&[b'x'; 1000], 3), "xx…");
    }

    proptest! {
        #[test]
        fn any_bytes_become_one_line_that_is_not_too_long(bytes in prop::collection::vec(any::<u8>(), 0..200), max in 1usize..50) {
            let line = line(&bytes, max);
            prop_assert!(line.chars().count() <= max);
            prop_assert!(line.chars().all(is_plain), "{:?}", line);
        }

        #[test]
        fn plain_text_stays_as_it_is(text in "[a-zA-Z0-9 äöü日本.,{}\"-]{0,60}") {
            prop_assert_eq!(line(text.as_bytes(), 60), text.clone());
            prop_assert_eq!(block(text.as_bytes()), text);
        }
    }
}
