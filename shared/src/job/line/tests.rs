//! Properties of the line parser: nothing makes it panic, and what was written comes back.

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;

/// Any JSON of a few levels.
fn values() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<f64>().prop_map(Json::from),
        ".{0,8}".prop_map(Json::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Json::from),
            prop::collection::btree_map(".{0,4}", inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

proptest! {
    #[test]
    fn any_bytes_are_an_item_or_a_fault(line in prop::collection::vec(any::<u8>(), 0..200)) {
        let limits = Limits { input_bytes: 50, ..Limits::default() };
        for bad in [text(&line, &limits).err(), item(&line, &Fields::default(), &limits).err()] {
            prop_assert!(bad.is_none_or(|bad| !bad.error.message.is_empty()));
        }
    }

    #[test]
    fn an_object_is_its_two_fields_whatever_stands_beside_them(
        line in ".{0,60}", id in prop::option::of(".{1,20}"), others in prop::collection::btree_map("[a-z]{5,9}", values(), 0..4),
        order in any::<bool>(),
    ) {
        let mut parts: Vec<String> = others.iter().map(|(name, value)| format!("{}: {value}", json!(name))).collect();
        parts.push(format!("\"text\": {}", json!(line)));
        parts.extend(id.as_ref().map(|id| format!("\"id\": {}", json!(id))));
        if order {
            parts.reverse();
        }
        let written = format!("  {{ {} }} ", parts.join(" , "));
        let expected = Item { id, input: Input::Text(line) };
        prop_assert_eq!(item(written.as_bytes(), &Fields::default(), &Limits::default()), Ok(expected));
    }

    #[test]
    fn an_item_that_was_written_is_read_back(query in ".{0,40}", passage in prop::option::of(".{0,40}")) {
        let input = match passage {
            Some(passage) => Input::Pair(query, passage),
            None => Input::Text(query),
        };
        let written = Item { id: None, input };
        let line = serde_json::to_vec(&written).expect("an item is JSON");
        prop_assert_eq!(item(&line, &Fields::default(), &Limits::default()), Ok(written));
    }

    #[test]
    fn a_field_of_another_type_is_a_fault_that_names_it(value in values()) {
        let line = format!("{{\"id\":\"a\",\"text\":{value}}}");
        match item(line.as_bytes(), &Fields::default(), &Limits::default()) {
            Ok(item) => prop_assert_eq!(value.as_str().map(|text| Input::Text(text.to_owned())), Some(item.input)),
            Err(bad) => {
                prop_assert_eq!(bad.id.as_deref(), Some("a"));
                prop_assert!(bad.error.message.contains("\"text\" is no string"), "{}", bad.error.message);
            }
        }
    }
}

#[test]
fn a_field_that_stands_twice_is_a_fault() {
    for line in [r#"{"text":"a","text":"b"}"#, r#"{"id":1,"text":"a","id":null}"#] {
        let bad = item(line.as_bytes(), &Fields::default(), &Limits::default()).expect_err("a field twice");
        assert!(bad.error.message.contains("stands twice"), "{}", bad.error.message);
    }
}

#[test]
fn ids_that_are_no_string_or_integer_are_faults() {
    for id in ["1.5", "true", "[1]", "{}", "\"\"", "18446744073709551616"] {
        let line = format!("{{\"id\":{id},\"text\":\"a\"}}");
        let bad = item(line.as_bytes(), &Fields::default(), &Limits::default()).expect_err("no id");
        assert!(bad.error.message.contains("field \"id\""), "{id}: {}", bad.error.message);
    }
    for (id, read) in [("-3", Some("-3")), ("18446744073709551615", Some("18446744073709551615")), ("null", None)] {
        let line = format!("{{\"id\":{id},\"text\":\"a\"}}");
        let item = item(line.as_bytes(), &Fields::default(), &Limits::default()).expect("an item");
        assert_eq!(item.id.as_deref(), read);
    }
}
