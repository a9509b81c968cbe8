//! Attributes as one column: each name and value with its length before it.
//!
//! In and out: [`Attributes`] and bytes, each other's inverse. Lengths are little-endian base 128, so that an attribute
//! of up to 127 bytes costs one byte more than its text. Pure.

use super::super::Attributes;

/// The attributes as bytes.
pub(super) fn pack(attributes: &Attributes) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(attributes.iter().map(|(name, value)| name.len() + value.len() + 4).sum());
    for text in attributes.iter().flat_map(|(name, value)| [name, value]) {
        push_length(&mut bytes, text.len());
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes
}

/// The attributes that these bytes hold; `None` when [`pack`] did not write them.
pub(super) fn unpack(mut bytes: &[u8]) -> Option<Attributes> {
    let mut attributes = Attributes::new();
    while !bytes.is_empty() {
        let name = take_text(&mut bytes)?;
        let value = take_text(&mut bytes)?;
        attributes.insert(name, value);
    }
    Some(attributes)
}

fn push_length(bytes: &mut Vec<u8>, mut length: usize) {
    while length > 0x7f {
        bytes.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
}

fn take_text(bytes: &mut &[u8]) -> Option<String> {
    let length = take_length(bytes)?;
    let (text, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    String::from_utf8(text.to_vec()).ok()
}

fn take_length(bytes: &mut &[u8]) -> Option<usize> {
    let mut length = 0;
    for shift in (0..usize::BITS - 7).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        length |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(length);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn attributes_come_back(attributes in prop::collection::btree_map(".{0,200}", ".{0,200}", 0..9)) {
            prop_assert_eq!(unpack(&pack(&attributes)), Some(attributes));
        }

        #[test]
        fn any_bytes_are_attributes_or_none(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Some(attributes) = unpack(&bytes) {
                prop_assert_eq!(unpack(&pack(&attributes)), Some(attributes));
            }
        }
    }
}
