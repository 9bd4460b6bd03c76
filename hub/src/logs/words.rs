//! Words to find, in what each engine understands: SQLite's FTS5 and PostgreSQL's text search.
//!
//! What somebody searches for never becomes a query's syntax: both engines are given words of letters and digits alone,
//! and what stands between them is compared afterwards.

use store::Engine;

/// Most parts of one search.
const PARTS: usize = 8;
/// Longest search, in bytes.
const LENGTH: usize = 256;

/// What is searched for: parts, divided by spaces, of which a line has all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Words(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    /// As it was written, in small letters.
    text: String,
    /// The words in it, with spaces between them; they follow each other in a line that has the part.
    words: String,
}

/// A search that is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("search for at most {PARTS} words, of {LENGTH} bytes in all")]
pub struct TooMany;

impl Words {
    /// Reads a search; `None` when it asks for nothing.
    pub(super) fn read(text: &str) -> Result<Option<Self>, TooMany> {
        let parts: Vec<Part> = text.split_whitespace().map(Part::read).collect();
        if text.len() > LENGTH || parts.len() > PARTS {
            return Err(TooMany);
        }
        Ok((!parts.is_empty()).then_some(Self(parts)))
    }

    /// The condition on `l.id` that an engine's index answers, with placeholders from `$first` on, and what they stand for;
    /// `None` when there is nothing in it that an index knows.
    pub(super) fn condition(&self, engine: Engine, first: usize, bounds: (i64, i64)) -> Option<(String, Vec<String>)> {
        let words: Vec<&str> =
            self.0.iter().map(|part| part.words.as_str()).filter(|words| !words.is_empty()).collect();
        if words.is_empty() {
            return None;
        }
        Some(match engine {
            Engine::Sqlite => {
                // A phrase is a string (FTS5, section 3.2), and words have no quotes.
                let phrases: Vec<String> = words.iter().map(|words| format!("\"{words}\"")).collect();
                let condition = format!("l.id IN (SELECT rowid FROM log_words WHERE log_words MATCH ${first})");
                (condition, vec![phrases.join(" ")])
            }
            Engine::Postgres => {
                let phrase = |place| format!("phraseto_tsquery('simple'::regconfig, ${}::text)", first + place);
                let query = (0..words.len()).map(phrase).collect::<Vec<_>>().join(" && ");
                let (since, until) = bounds;
                let condition = format!("l.id IN (SELECT log_find({query}, {since}, {until}))");
                (condition, words.into_iter().map(str::to_owned).collect())
            }
        })
    }

    /// Whether a line that the index found has all parts as they were written, whatever their case.
    pub(super) fn are_in(&self, line: &str) -> bool {
        let line = line.to_lowercase();
        self.0.iter().all(|part| line.contains(&part.text))
    }
}

impl Part {
    fn read(text: &str) -> Self {
        // Their case is the engines' to fold, each in its own way, which is that of its index.
        let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
        let words = words.collect::<Vec<_>>().join(" ");
        Self { text: text.to_lowercase(), words }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: (i64, i64) = (i64::MIN, i64::MAX);

    fn asked(text: &str, engine: Engine) -> (String, Vec<String>) {
        Words::read(text).unwrap().unwrap().condition(engine, 3, ALL).unwrap()
    }

    #[test]
    fn a_search_becomes_words_and_nothing_else() {
        let (condition, values) = asked("\"a\" OR* NEAR(b, col:c) -d ^e Größe=7.5", Engine::Sqlite);
        assert!(condition.ends_with("MATCH $3)"), "{condition}");
        assert_eq!(values, ["\"a\" \"OR\" \"NEAR b\" \"col c\" \"d\" \"e\" \"Größe 7 5\""]);
        let (condition, values) = asked("it's; a'b) & !c", Engine::Postgres);
        assert!(condition.contains("$3::text) && phraseto_tsquery('simple'::regconfig, $4::text)"), "{condition}");
        assert_eq!(values, ["it s", "a b", "c"]);
    }

    #[test]
    fn what_no_index_knows_is_compared_alone() {
        let words = Words::read("*** =>").unwrap().unwrap();
        assert_eq!(words.condition(Engine::Sqlite, 1, ALL), None);
        assert!(words.are_in("a => ***b") && !words.are_in("a -> ***"));
        assert_eq!(Words::read("  ").unwrap(), None);
        assert_eq!(Words::read(&"x ".repeat(PARTS + 1)), Err(TooMany));
    }

    #[test]
    fn parts_are_found_as_they_were_written_whatever_their_case() {
        let words = Words::read("level=ERROR Druck").unwrap().unwrap();
        assert!(words.are_in("Level=Error: druck zu hoch"));
        assert!(!words.are_in("level: error, druck"));
    }
}
