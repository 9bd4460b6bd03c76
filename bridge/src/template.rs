//! Text with places in braces that a message's topic fills: `plant.{2}`, `{3..}`.

use std::fmt::Write;
use std::str::FromStr;

/// A template, parsed.
///
/// `{topic}` is the whole topic, `{2}` its second level, `{2..}` the second and all that follow, `{mqtt}` the name of the
/// connection it came by; `{{` and `}}` are braces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Topic,
    Level(usize),
    From(usize),
    Mqtt,
}

impl Template {
    /// Whether it is the same for all messages.
    pub fn is_constant(&self) -> bool {
        self.0.iter().all(|part| matches!(part, Part::Text(_) | Part::Mqtt))
    }

    /// The text for a message of `topic`. Several levels are written with `separator` between.
    ///
    /// # Errors
    /// The number of a level that the topic does not have.
    pub fn fill(&self, topic: &str, mqtt: &str, separator: char) -> Result<String, usize> {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(part) => text.push_str(part),
                Part::Mqtt => text.push_str(mqtt),
                Part::Level(number) => text.push_str(topic.split('/').nth(number - 1).ok_or(*number)?),
                Part::Topic => join(&mut text, topic.split('/'), separator),
                Part::From(number) => {
                    let mut levels = topic.split('/').skip(number - 1).peekable();
                    levels.peek().ok_or(*number)?;
                    join(&mut text, levels, separator);
                }
            }
        }
        Ok(text)
    }
}

fn join<'a>(text: &mut String, levels: impl Iterator<Item = &'a str>, separator: char) {
    for (index, level) in levels.enumerate() {
        if index > 0 {
            text.push(separator);
        }
        // Writing to a String does not fail.
        let _ = text.write_str(level);
    }
}

impl FromStr for Template {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, TemplateError> {
        let (mut parts, mut literal, mut rest) = (Vec::new(), String::new(), text);
        while let Some(at) = rest.find(['{', '}']) {
            literal.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            let after = &rest[at + 1..];
            if let Some(doubled) = after.strip_prefix(brace) {
                literal.push_str(brace);
                rest = doubled;
                continue;
            }
            let place = match (brace, after.split_once('}')) {
                ("{", Some((place, after))) => {
                    rest = after;
                    place
                }
                _ => return Err(TemplateError::Brace(text.to_owned())),
            };
            if !literal.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut literal)));
            }
            parts.push(part(place).ok_or_else(|| TemplateError::Place(place.to_owned()))?);
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Text(literal));
        }
        Ok(Self(parts))
    }
}

fn part(place: &str) -> Option<Part> {
    let level = |text: &str| text.parse().ok().filter(|number| *number > 0);
    match place {
        "topic" => Some(Part::Topic),
        "mqtt" => Some(Part::Mqtt),
        place => match place.strip_suffix("..") {
            Some(from) => level(from).map(Part::From),
            None => level(place).map(Part::Level),
        },
    }
}

/// Text that is no template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A brace without its other half.
    #[error("{0:?} has a brace without its other half; a brace itself is written twice")]
    Brace(String),
    /// A place that nothing fills.
    #[error(
        "{{{0}}} is not known; there are {{topic}}, {{mqtt}}, {{2}} for the second level and {{2..}} for it and all that follow"
    )]
    Place(String),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filled(template: &str) -> Result<String, usize> {
        template.parse::<Template>().unwrap().fill("acme/line 1/temp", "plant", '.')
    }

    #[test]
    fn places_are_filled() {
        assert_eq!(filled("{topic}").unwrap(), "acme.line 1.temp");
        assert_eq!(filled("x-{2}-{mqtt}").unwrap(), "x-line 1-plant");
        assert_eq!(filled("{2..}").unwrap(), "line 1.temp");
        assert_eq!(filled("{{{1}}}").unwrap(), "{acme}");
        assert_eq!((filled("{4}"), filled("{4..}")), (Err(4), Err(4)));
    }

    #[test]
    fn what_is_no_template_is_refused() {
        for text in ["{", "}", "{}", "{0}", "{level}", "a{1", "{1}}", "{..2}", "{-1}"] {
            assert!(text.parse::<Template>().is_err(), "{text}");
        }
    }

    #[test]
    fn templates_know_whether_they_are_the_same_for_all() {
        let parsed = |text: &str| text.parse::<Template>().unwrap();
        assert!(parsed("all").is_constant() && parsed("{mqtt}").is_constant() && !parsed("{2}").is_constant());
    }

    proptest! {
        #[test]
        fn text_without_braces_is_itself(text in "[^{}]{0,20}", topic in ".{0,20}") {
            let template: Template = text.parse().unwrap();
            prop_assert_eq!(template.fill(&topic, "", '/').unwrap(), text);
        }

        #[test]
        fn arbitrary_text_does_not_panic(text in ".{0,20}", topic in ".{0,20}") {
            if let Ok(template) = text.parse::<Template>() {
                let _ = template.fill(&topic, "m", '/');
            }
        }
    }
}
