//! The Unified Namespace of the United Manufacturing Hub: its MQTT topics as keys of one Kafka topic.
//!
//! `umh/v1/acme/cologne/_historian/temperature` becomes the key `umh.v1.acme.cologne._historian.temperature` of the topic
//! `umh.messages`. A key has letters, digits, `.`, `_` and `-` alone. Where others replace what a key may not have by `_`,
//! and so put different topics under one key, a level that is changed here gets a number at its end that follows from
//! what it was: `Temp °C` is `Temp___C-` and eight digits.

/// The Kafka topic that all messages go to.
pub const TOPIC: &str = "umh.messages";
/// What its topics begin with.
pub const PREFIX: &str = "umh/v1/";
/// The filter of the namespace.
pub const FILTER: &str = "umh/v1/#";

/// The key for a message of `topic`.
///
/// # Errors
/// What is wrong with a topic that is not one of the namespace.
pub fn key(topic: &str) -> Result<String, &'static str> {
    let levels: Vec<&str> = topic.split('/').collect();
    let ["umh", "v1", location @ ..] = levels.as_slice() else { return Err("it does not begin with umh/v1/") };
    if location.iter().any(|level| level.is_empty()) {
        return Err("it has an empty level");
    }
    match location.iter().position(|level| level.starts_with('_')) {
        None => return Err("no level is a data contract, which begins with _, like _historian"),
        Some(0) => return Err("no level says where: umh/v1/ is followed by the enterprise"),
        Some(contract) if contract + 1 == location.len() => return Err("nothing follows the data contract"),
        Some(_) => {}
    }
    let mut key = String::from("umh.v1");
    for level in location {
        key.push('.');
        push_level(&mut key, level);
    }
    Ok(key)
}

/// The key by the usual rule, which puts different topics under one: every character that a key may not have becomes `_`.
pub fn usual_key(topic: &str) -> String {
    topic
        .chars()
        .map(|c| {
            if c == '/' || c == '.' {
                '.'
            } else if is_plain(c) {
                c
            } else {
                '_'
            }
        })
        .collect()
}

/// The levels of a topic that [`key`] changes, because the usual rule would make them others.
pub fn changed_levels(topic: &str) -> impl Iterator<Item = &str> {
    topic.split('/').filter(|level| is_changed(level))
}

fn is_changed(level: &str) -> bool {
    !level.chars().all(is_plain)
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '-'
}

fn push_level(key: &mut String, level: &str) {
    key.extend(level.chars().map(|c| if is_plain(c) { c } else { '_' }));
    if is_changed(level) {
        key.push_str(&format!("-{:08x}", crc32c::crc32c(level.as_bytes())));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn topics_become_keys() {
        assert_eq!(
            key("umh/v1/acme/cologne/line-1/_historian/head/temperature").unwrap(),
            "umh.v1.acme.cologne.line-1._historian.head.temperature"
        );
        let (one, other) = (key("umh/v1/a/_raw/Temp °C").unwrap(), key("umh/v1/a/_raw/Temp_°C").unwrap());
        assert!(one.starts_with("umh.v1.a._raw.Temp__C-") && one != other, "{one} {other}");
        // A dot would look like the end of a level.
        assert_ne!(key("umh/v1/a/_raw/b.c").unwrap(), key("umh/v1/a/_raw/b/c").unwrap());
    }

    #[test]
    fn what_is_not_of_the_namespace_is_told() {
        for topic in ["umh/v1", "umh/v2/a/_raw/x", "umh/v1/a/x", "umh/v1/_raw/x", "umh/v1/a/_raw", "umh/v1/a//_raw/x"] {
            assert!(key(topic).is_err(), "{topic}");
        }
    }

    proptest! {
        #[test]
        fn a_key_is_legal_and_different_topics_have_different_keys(one in "[a.ü_ -]{1,4}", other in "[a.ü_ -]{1,4}") {
            let of = |level: &str| key(&format!("umh/v1/a/_raw/{level}")).unwrap();
            prop_assert!(of(&one).chars().all(|c| is_plain(c) || c == '.'));
            prop_assert_eq!(of(&one) == of(&other), one == other);
        }
    }
}
