//! What nodes themselves say of commands: how often each came, was begun, and had its effect.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};
use protocol::CommandId;

use crate::fleet::{ACCOUNT, Line};

/// The accounts of all nodes together.
#[derive(Debug, Default)]
pub(super) struct Accounts(HashMap<CommandId, Account>);

/// What is said of one command.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Account {
    /// Times it came.
    pub(super) came: u64,
    /// Times it was begun.
    pub(super) begun: u64,
    /// It was begun by the process that was there at the end, which nobody killed.
    pub(super) begun_by_survivor: bool,
    /// Effects it had.
    pub(super) effects: u64,
}

impl Accounts {
    pub(super) fn of(&self, id: CommandId) -> Account {
        self.0.get(&id).copied().unwrap_or_default()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (CommandId, Account)> {
        self.0.iter().map(|(id, account)| (*id, *account))
    }

    /// Adds what the simulated nodes of a folder say.
    pub(super) fn read(&mut self, folder: &Path) -> Result<()> {
        let path = folder.join(ACCOUNT);
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let lines: Vec<Line> = text.lines().map(str::parse).collect::<Result<_>>()?;
        let survivor = lines.iter().rposition(|line| *line == Line::Life).unwrap_or_default();
        for (place, line) in lines.into_iter().enumerate() {
            match line {
                Line::Life => {}
                Line::Came(id) => self.0.entry(id).or_default().came += 1,
                Line::Began(id) => {
                    let account = self.0.entry(id).or_default();
                    account.begun += 1;
                    account.begun_by_survivor |= place > survivor;
                }
                Line::Did(id) => self.0.entry(id).or_default().effects += 1,
            }
        }
        Ok(())
    }

    /// Adds what the scripts of a real agent have written: the command's id for each effect.
    pub(super) fn read_effects(&mut self, file: &Path) -> Result<()> {
        let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        for line in text.lines() {
            self.0.entry(line.parse().with_context(|| format!("a script wrote {line:?}"))?).or_default().effects += 1;
        }
        Ok(())
    }
}
