//! Objects of `--json` beside what docs/json.md says, for the tests of the programs that print them.

use std::collections::BTreeSet;

use serde_json::Value;

/// The first example of the page with all of these names.
///
/// # Panics
/// There is none, or the page has an example that is no JSON.
pub fn example(page: &str, of: &[&str]) -> Value {
    let parts = page.split("```json\n").skip(1);
    parts
        .flat_map(|part| part.split("```").next().expect("it ends").split("\n{"))
        .map(|text| match text.starts_with('{') {
            true => text.to_owned(),
            false => format!("{{{text}"),
        })
        .map(|text| -> Value {
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
        })
        .find(|example| of.iter().all(|name| example.get(name).is_some()))
        .unwrap_or_else(|| panic!("{of:?} is in no example"))
}

/// The paths of all names in an object; elements of a list share one, which ends with `[]`.
fn names(value: &Value, above: &str, all: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let path = format!("{above}.{name}");
                names(value, &path, all);
                all.insert(path);
            }
        }
        Value::Array(list) => {
            for value in list {
                let path = format!("{above}[]");
                names(value, &path, all);
                all.insert(path);
            }
        }
        _ => {}
    }
}

/// Checks that `line` is one whole line with one object, numbered in front, which has the names of the page's
/// [`example`] and no others; returns it.
///
/// # Panics
/// It is not so.
pub fn assert_documented(page: &str, of: &[&str], line: &str) -> Value {
    let line = line.strip_suffix('\n').unwrap_or(line);
    assert!(!line.contains('\n'), "one line: {line}");
    let start = format!("{{\"schema\":{},", crate::SCHEMA);
    assert!(line.starts_with(&start), "{line}");
    let object: Value =
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let (mut given, mut wanted) = (BTreeSet::new(), BTreeSet::new());
    names(&object, "", &mut given);
    names(&example(page, of), "", &mut wanted);
    // What may be left out, and what stands below something that is.
    for name in wanted.clone().iter().filter(|name| name.contains('?')) {
        wanted.remove(name);
        let above = name.strip_suffix('?');
        let above = above.or_else(|| name.rsplit_once('.').map(|(above, _)| above));
        let above = above.expect("its path").replace('?', "");
        if given.contains(&above) {
            wanted.insert(name.replace('?', ""));
        }
    }
    for names in [&mut given, &mut wanted] {
        // A list may be empty.
        names.retain(|name| !name.ends_with("[]"));
    }
    assert_eq!(given, wanted, "{line}");
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str =
        "Text\n```json\n{\"schema\": 2, \"a\": 1,\n \"b?\": [{\"c\": 1}]}\n{\"d\": 1}\n```\n";

    #[test]
    fn names_are_those_of_the_page_and_some_may_be_left_out() {
        assert_documented(PAGE, &["a"], "{\"schema\":2,\"a\":7}\n");
        assert_documented(PAGE, &["a"], "{\"schema\":2,\"a\":7,\"b\":[{\"c\":1}]}");
        for wrong in [
            "{\"schema\":2}",
            "{\"a\":7}",
            "{\"schema\":2,\"a\":7,\"e\":0}",
            "{\"schema\":2,\"a\":7,\"b\":[{}]}",
            "{\"schema\":2,\"a\":7}\n{}",
        ] {
            let judged = std::panic::catch_unwind(|| assert_documented(PAGE, &["a"], wrong));
            assert!(judged.is_err(), "{wrong}");
        }
        assert_eq!(example(PAGE, &["d"])["d"], 1);
    }
}
