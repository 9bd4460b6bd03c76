//! The local policy: which commands of the hub this machine's owner has the agent carry out, and on what.

use std::collections::BTreeMap;
use std::path::PathBuf;

use protocol::command::{Action, Name};
use serde::Deserialize;

use crate::config::ConfigError;

/// Stands for every Compose project.
const ALL: &str = "*";

/// The table `[commands]`. What it does not allow is refused, whoever asks.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Policy {
    /// Actions that are carried out. Not among the defaults: service.stop, which leaves something standing still.
    pub accept: Vec<String>,
    /// Compose projects they may touch; `*`: all.
    pub projects: Vec<String>,
    /// Scripts by name, each an absolute path. Whoever names one here allows the hub to run it, without arguments.
    pub scripts: BTreeMap<String, PathBuf>,
}

impl Default for Policy {
    fn default() -> Self {
        let accept = Name::ALL.into_iter().filter(|name| !matches!(name, Name::ServiceStop | Name::Script));
        Self {
            accept: accept.map(|name| name.as_str().to_owned()).collect(),
            projects: vec![ALL.to_owned()],
            scripts: BTreeMap::new(),
        }
    }
}

impl Policy {
    /// Refuses a policy that would not mean what it says.
    pub(crate) fn checked(&self) -> Result<(), ConfigError> {
        let wrong = |key, why: String| Err(ConfigError::Value { key, why });
        for name in &self.accept {
            match name.parse() {
                Ok(Name::Script) => {
                    let why = "a script is accepted by naming it in [commands.scripts]; leave \"script\" out".into();
                    return wrong("commands.accept", why);
                }
                Ok(_) => {}
                Err(_) => {
                    let known = Name::ALL.into_iter().filter(|known| *known != Name::Script).map(Name::as_str);
                    let known = known.collect::<Vec<_>>().join(", ");
                    return wrong("commands.accept", format!("{name:?} is no action; use {known}"));
                }
            }
        }
        for (name, path) in &self.scripts {
            if (Action::Script { name: name.clone() }).checked().is_err() {
                return wrong("commands.scripts", format!("{name:?}: use letters, digits, '-', '_' and '.'"));
            }
            if !path.is_absolute() {
                return wrong("commands.scripts", format!("{name}: {} is not an absolute path", path.display()));
            }
        }
        Ok(())
    }

    /// Why an action is not carried out here; `Ok` when it is.
    ///
    /// # Errors
    /// A sentence for the person who asked for it.
    pub fn allows(&self, action: &Action) -> Result<(), String> {
        let name = action.name();
        if let Action::Script { name } = action {
            return match self.scripts.contains_key(name) {
                true => Ok(()),
                false => Err(format!(
                    "this machine's agent has no script {name:?}: its owner names scripts in agent.toml, [commands.scripts]"
                )),
            };
        }
        if !self.accept.iter().any(|accepted| accepted == name.as_str()) {
            return Err(format!(
                "this machine's agent does not accept {name}: its owner lists what it accepts in agent.toml, [commands] accept"
            ));
        }
        match action.stack() {
            Some(stack) if !self.projects.iter().any(|project| project == ALL || project == stack) => Err(format!(
                "this machine's agent leaves the project {stack} alone: its owner lists others in agent.toml, [commands] projects"
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restart(stack: &str) -> Action {
        Action::ServiceRestart { stack: stack.into(), service: "web".into() }
    }

    #[test]
    fn by_default_all_is_accepted_but_what_stops_a_service_and_scripts() {
        let policy = Policy::default();
        policy.checked().unwrap();
        assert_eq!(policy.allows(&restart("shop")), Ok(()));
        assert_eq!(policy.allows(&Action::Diagnostics), Ok(()));
        let stop = Action::ServiceStop { stack: "shop".into(), service: "web".into() };
        assert!(policy.allows(&stop).unwrap_err().contains("service.stop"));
        assert!(policy.allows(&Action::Script { name: "rotate".into() }).unwrap_err().contains("no script \"rotate\""));
    }

    #[test]
    fn an_owner_narrows_and_widens_it() {
        let policy = Policy {
            accept: vec!["service.restart".into()],
            projects: vec!["shop".into()],
            scripts: BTreeMap::from([("rotate".into(), "/usr/local/sbin/rotate".into())]),
        };
        policy.checked().unwrap();
        assert_eq!(policy.allows(&restart("shop")), Ok(()));
        assert!(policy.allows(&restart("other")).unwrap_err().contains("the project other"));
        assert!(policy.allows(&Action::Drain).is_err());
        assert_eq!(policy.allows(&Action::Script { name: "rotate".into() }), Ok(()));
    }

    #[test]
    fn a_policy_that_would_not_mean_what_it_says_is_refused() {
        let policy = |accept: &str| Policy { accept: vec![accept.into()], ..Policy::default() };
        assert!(policy("service.rstart").checked().unwrap_err().to_string().contains("use service.start,"));
        assert!(policy("script").checked().unwrap_err().to_string().contains("[commands.scripts]"));
        let scripts = |name: &str, path: &str| Policy {
            scripts: BTreeMap::from([(name.into(), path.into())]),
            ..Policy::default()
        };
        assert!(scripts("rotate", "bin/rotate").checked().is_err());
        assert!(scripts("a b", "/bin/rotate").checked().is_err());
    }
}
