//! An MQTT topic filter: which topics it matches, and how it stands to another.

use std::fmt;
use std::str::FromStr;

/// Longest topic or filter in bytes (MQTT 3.1.1, section 1.5.3).
const LONGEST: usize = u16::MAX as usize;
/// What a shared subscription begins with.
const SHARE: &str = "$share/";

/// A topic filter (MQTT 3.1.1, section 4.7), seen to be one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    text: Box<str>,
    /// Where the filter begins behind `$share/group/`.
    starts: usize,
}

impl Filter {
    /// What is subscribed to, `$share/…` included.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the broker gives each message to one of several subscribers only.
    pub fn is_shared(&self) -> bool {
        self.starts > 0
    }

    /// Whether messages of `topic` come by this filter. Wildcards match no first level that begins with `$`.
    pub fn matches(&self, topic: &str) -> bool {
        if topic.starts_with('$') && !self.levels().next().is_some_and(|first| first.starts_with('$')) {
            return false;
        }
        let mut levels = topic.split('/');
        for wanted in self.levels() {
            match (wanted, levels.next()) {
                ("#", _) => return true,
                (_, None) => return false,
                ("+", Some(_)) => {}
                (wanted, Some(level)) if wanted != level => return false,
                _ => {}
            }
        }
        levels.next().is_none()
    }

    /// Whether every topic that `other` matches is matched by this one too.
    pub fn covers(&self, other: &Self) -> bool {
        let dollar = |filter: &Self| filter.levels().next().is_some_and(|first| first.starts_with('$'));
        if dollar(other) && !dollar(self) {
            return false;
        }
        let mut theirs = other.levels();
        for wanted in self.levels() {
            match (wanted, theirs.next()) {
                ("#", _) => return true,
                (_, None | Some("#")) => return false,
                ("+", Some(_)) => {}
                (wanted, Some(level)) if wanted != level => return false,
                _ => {}
            }
        }
        theirs.next().is_none()
    }

    /// Whether some topic may come by both.
    pub fn meets(&self, other: &Self) -> bool {
        let (mut ours, mut theirs) = (self.levels().peekable(), other.levels().peekable());
        let dollar = |first: Option<&&str>| first.is_some_and(|first| first.starts_with('$'));
        // Wildcards match no first level that begins so.
        if dollar(ours.peek()) != dollar(theirs.peek()) {
            return false;
        }
        loop {
            match (ours.next(), theirs.next()) {
                (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
                (Some("+"), Some(_)) | (Some(_), Some("+")) => {}
                (ours, theirs) if ours != theirs => return false,
                _ => {}
            }
        }
    }

    fn levels(&self) -> std::str::Split<'_, char> {
        self.text[self.starts..].split('/')
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let wrong = |why| Err(FilterError { text: text.chars().take(80).collect(), why });
        let mut starts = 0;
        if let Some(rest) = text.strip_prefix(SHARE) {
            let Some((group, _)) = rest.split_once('/') else { return wrong("$share/ is followed by group/filter") };
            if group.is_empty() || group.contains(['+', '#']) {
                return wrong("the group in $share/group/filter is a name without '+' and '#'");
            }
            starts = SHARE.len() + group.len() + 1;
        }
        let filter = &text[starts..];
        if filter.is_empty() || text.len() > LONGEST {
            return wrong("it has 1 to 65535 bytes");
        }
        if filter.contains('\0') {
            return wrong("it has no NUL character");
        }
        let mut levels = filter.split('/').peekable();
        while let Some(level) = levels.next() {
            match level {
                "#" if levels.peek().is_some() => return wrong("'#' stands at the end only"),
                "#" | "+" => {}
                level if level.contains(['#', '+']) => return wrong("'+' and '#' stand for whole levels, between '/'"),
                _ => {}
            }
        }
        Ok(Self { text: text.into(), starts })
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Text that is no topic filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a topic filter: {why}")]
pub struct FilterError {
    text: String,
    why: &'static str,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filter(text: &str) -> Filter {
        text.parse().unwrap()
    }

    #[test]
    fn the_examples_of_the_standard_hold() {
        for (text, topic, expected) in [
            ("sport/tennis/player1/#", "sport/tennis/player1", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true),
            ("sport/#", "sport", true),
            ("#", "a/b", true),
            ("sport/tennis/+", "sport/tennis/player1", true),
            ("sport/tennis/+", "sport/tennis/player1/ranking", false),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("#", "$SYS/uptime", false),
            ("+/monitor", "$SYS/monitor", false),
            ("$SYS/#", "$SYS/monitor/Clients", true),
            ("$share/readers/sport/+", "sport/a", true),
        ] {
            assert_eq!(filter(text).matches(topic), expected, "{text} {topic}");
        }
    }

    #[test]
    fn what_is_no_filter_is_refused_with_the_rule() {
        for (text, why) in [
            ("", "bytes"),
            ("a/#/b", "at the end"),
            ("a#", "whole levels"),
            ("a/b+", "whole levels"),
            ("a\0", "NUL"),
            ("$share/group", "group/filter"),
            ("$share/group/", "bytes"),
            ("$share//a", "a name"),
        ] {
            let refused = text.parse::<Filter>().unwrap_err().to_string();
            assert!(refused.contains(why), "{refused}");
        }
        assert!("a".repeat(65_536).parse::<Filter>().is_err());
    }

    #[test]
    fn filters_meet_where_a_topic_may_come_by_both() {
        for (one, other, expected) in [
            ("a/+/c", "a/b/#", true),
            ("a/#", "a", true),
            ("+/b", "a/+", true),
            ("a/+", "a/b/c", false),
            ("a/+/c", "a/b/d", false),
            ("#", "$SYS/a", false),
            ("+/a", "$SYS/#", false),
            ("$SYS/+", "$SYS/#", true),
            ("$share/readers/a/#", "a/+", true),
        ] {
            assert_eq!(filter(one).meets(&filter(other)), expected, "{one} {other}");
        }
    }

    fn level() -> impl Strategy<Value = String> {
        prop_oneof![Just(String::new()), "[ab]", Just("$s".to_owned())]
    }

    fn topics() -> impl Strategy<Value = String> {
        prop::collection::vec(level(), 1..5).prop_map(|levels| levels.join("/")).prop_filter("empty", |t| !t.is_empty())
    }

    fn filters() -> impl Strategy<Value = Filter> {
        let level = prop_oneof![3 => level(), 1 => Just("+".to_owned())];
        (prop::collection::vec(level, 0..5), any::<bool>()).prop_filter_map("empty", |(mut levels, hash)| {
            levels.extend(hash.then(|| "#".to_owned()));
            levels.join("/").parse().ok()
        })
    }

    proptest! {
        #[test]
        fn a_topic_with_levels_replaced_by_wildcards_matches_it(topic in topics(), plus in any::<u8>(), cut in any::<Option<u8>>()) {
            let levels: Vec<&str> = topic.split('/').collect();
            let mut wanted: Vec<&str> =
                levels.iter().enumerate().map(|(at, level)| if plus >> (at % 8) & 1 == 1 { "+" } else { level }).collect();
            if let Some(cut) = cut {
                wanted.truncate(usize::from(cut) % (levels.len() + 1));
                wanted.push("#");
            }
            let wild = wanted[0] == "+" || wanted[0] == "#";
            prop_assert_eq!(filter(&wanted.join("/")).matches(&topic), !(wild && topic.starts_with('$')));
        }

        #[test]
        fn another_literal_level_does_not_match(topic in topics(), at in any::<prop::sample::Index>()) {
            let mut levels: Vec<&str> = topic.split('/').collect();
            let at = at.index(levels.len());
            levels[at] = "other";
            prop_assert!(!filter(&levels.join("/")).matches(&topic));
        }

        #[test]
        fn what_covers_another_matches_all_that_it_does(one in filters(), other in filters(), topic in topics()) {
            if one.covers(&other) && other.matches(&topic) {
                prop_assert!(one.matches(&topic), "{} covers {}, {}", one, other, topic);
            }
            prop_assert!(one.covers(&one));
        }

        #[test]
        fn filters_by_which_one_topic_comes_meet(one in filters(), other in filters(), topic in topics()) {
            if one.matches(&topic) && other.matches(&topic) {
                prop_assert!(one.meets(&other), "{} meets {}, {}", one, other, topic);
            }
            prop_assert_eq!(one.meets(&other), other.meets(&one));
        }

        #[test]
        fn arbitrary_text_does_not_panic(text in ".{0,30}", topic in ".{0,30}") {
            if let Ok(filter) = text.parse::<Filter>() {
                filter.matches(&topic);
            }
        }
    }
}
