//! What is asked at the terminal: a passphrase, unseen, or a yes.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};

use pki::Passphrase;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

/// Longest passphrase; room for it is taken at once, so that growing leaves no copies behind.
const LONGEST: usize = 4096;

/// Asks at the terminal this process belongs to, wherever its output goes.
pub(crate) fn ask(question: &str) -> io::Result<Passphrase> {
    let mut terminal = OpenOptions::new().read(true).write(true).open("/dev/tty")?;
    terminal.write_all(question.as_bytes())?;
    let mut text = Zeroizing::new(String::with_capacity(LONGEST));
    {
        let _silence = Silence::fall(&terminal)?;
        io::Read::take(BufReader::with_capacity(LONGEST, &terminal), LONGEST as u64).read_line(&mut text)?;
    }
    terminal.write_all(b"\n")?;
    if text.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Passphrase::new(text))
}

/// Asks for a yes, spelt out.
pub(crate) fn confirm(question: &str) -> io::Result<bool> {
    let mut terminal = OpenOptions::new().read(true).write(true).open("/dev/tty")?;
    terminal.write_all(question.as_bytes())?;
    let mut answer = String::new();
    io::Read::take(BufReader::with_capacity(LONGEST, &terminal), LONGEST as u64).read_line(&mut answer)?;
    Ok(answer.trim() == "yes")
}

/// A terminal that does not show what is typed, until this is dropped.
struct Silence<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Silence<'a> {
    fn fall(terminal: &'a File) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(terminal, OptionalActions::Flush, &silent)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Silence<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.terminal, OptionalActions::Flush, &self.before);
    }
}
