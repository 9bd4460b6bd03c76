//! Where a person has left the join token: on the command line, in a file, on standard input, or in the configuration.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use pki::JoinToken;

/// A token is about 150 characters.
const LONGEST: u64 = 4096;
/// What stands for standard input.
const STANDARD_INPUT: &str = "-";

/// Where the command line says that the token is.
#[derive(Debug, Default)]
pub struct TokenArguments {
    /// `--token`: the token itself, or `-` for standard input.
    pub token: Option<String>,
    /// `--token-file`, `-` for standard input.
    pub file: Option<PathBuf>,
}

impl TokenArguments {
    /// Reads the token; `configured` is the one that counts when the command line names none. `program` is what the
    /// variables in the advice begin with, like `HYPERFACTORY_AGENT`.
    ///
    /// # Errors
    /// [`TokenReadError`]: wrong usage.
    pub fn read(self, configured: Option<&str>, program: &'static str) -> Result<JoinToken, TokenReadError> {
        let text = match (self.token, self.file) {
            (Some(token), None) if token != STANDARD_INPUT => token,
            (Some(_), None) => read(Path::new(STANDARD_INPUT))?,
            (_, Some(file)) => read(&file)?,
            (None, None) => configured.map(str::to_owned).ok_or(TokenReadError::None(program))?,
        };
        parse(&text)
    }
}

/// Reads a join token as a person pasted it.
///
/// # Errors
/// [`TokenReadError::Token`] when it is cut short, mistyped or no join token at all.
pub fn parse(token: &str) -> Result<JoinToken, TokenReadError> {
    Ok(token.trim().parse()?)
}

fn read(path: &Path) -> Result<String, TokenReadError> {
    let mut token = String::new();
    let read = if path == Path::new(STANDARD_INPUT) {
        io::stdin().take(LONGEST).read_to_string(&mut token)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(LONGEST).read_to_string(&mut token))
    };
    match read {
        Ok(_) => Ok(token),
        Err(source) if path == Path::new(STANDARD_INPUT) => Err(TokenReadError::Input(source)),
        Err(source) => Err(TokenReadError::File { path: path.to_owned(), source }),
    }
}

/// There is no join token where it should be.
#[derive(Debug, thiserror::Error)]
pub enum TokenReadError {
    /// Nobody said where.
    #[error(
        "no join token: give it with --token TOKEN, --token-file FILE (- for standard input), or in {0}_TOKEN or \
         {0}_TOKEN_FILE"
    )]
    None(&'static str),
    /// Standard input gave none.
    #[error("the token can't be read from standard input")]
    Input(#[source] io::Error),
    /// The file can't be read.
    #[error("the token can't be read from {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is none.
    #[error(transparent)]
    Token(#[from] pki::TokenError),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(arguments: TokenArguments) -> TokenReadError {
        arguments.read(None, "HYPERFACTORY_AGENT").expect_err("no token")
    }

    #[test]
    fn a_token_that_is_missing_or_none_is_told_apart() {
        let said = refused(TokenArguments::default()).to_string();
        assert!(said.contains("--token-file") && said.contains("HYPERFACTORY_AGENT_TOKEN_FILE"), "{said}");
        let cut = TokenArguments { token: Some("hfj_cut".into()), file: None };
        assert!(matches!(refused(cut), TokenReadError::Token(_)));
        let said = refused(TokenArguments { token: None, file: Some("/nonexistent".into()) }).to_string();
        assert!(said.contains("/nonexistent"), "{said}");
    }

    #[test]
    fn a_token_file_may_end_in_a_line_break() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "hfj_abc\n").expect("written");
        let read = refused(TokenArguments { token: None, file: Some(file.path().to_owned()) }).to_string();
        assert_eq!(read, parse("hfj_abc").expect_err("cut short").to_string());
    }
}
