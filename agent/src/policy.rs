//! The local policy: which commands of the hub this machine's owner has the agent carry out, and on what.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use pki::OperatorPublicKey;
use protocol::command::{Action, Name, Order, Signature};
use protocol::{NodeId, Timestamp};
use serde::Deserialize;
use settings::Period;

use crate::config::ConfigError;

/// Stands for every Compose project.
pub(crate) const ALL: &str = "*";
/// Shortest and longest time that a backup may be given.
const BACKUP_WITHIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(86_400));
/// How far this machine's clock may be off when it judges until when a signature counts.
const LEEWAY: Duration = Duration::from_secs(86_400);

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
    /// How long a backup may run; then it is stopped, and has failed.
    pub backup_within: Period,
    /// Actions that are carried out only with the signature of one of the operators below: the hub alone can't have them done.
    pub require_signature: Vec<String>,
    /// The public keys, `hfop_…`, of operators whose signatures count.
    pub operators: Vec<String>,
}

impl Default for Policy {
    fn default() -> Self {
        let accept = Name::ALL.into_iter().filter(|name| !matches!(name, Name::ServiceStop | Name::Script));
        Self {
            accept: accept.map(|name| name.as_str().to_owned()).collect(),
            projects: vec![ALL.to_owned()],
            scripts: BTreeMap::new(),
            backup_within: Period(Duration::from_secs(6 * 3_600)),
            require_signature: Vec::new(),
            operators: Vec::new(),
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
        for name in &self.require_signature {
            if name.parse::<Name>().is_err() {
                let known = Name::ALL.map(Name::as_str).join(", ");
                return wrong("commands.require-signature", format!("{name:?} is no action; use {known}"));
            }
        }
        let (shortest, longest) = BACKUP_WITHIN;
        if !(shortest..=longest).contains(&self.backup_within.get()) {
            let why = format!("use from {} to {}", Period(shortest), Period(longest));
            return wrong("commands.backup-within", why);
        }
        for key in &self.operators {
            if let Err(error) = key.parse::<OperatorPublicKey>() {
                return wrong("commands.operators", format!("{key:?}: {error}"));
            }
        }
        if !self.require_signature.is_empty() && self.operators.is_empty() {
            let why = "name at least one key in commands.operators, or nobody can have these actions done".into();
            return wrong("commands.require-signature", why);
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

    /// Why `node` does not carry out a command now; `Ok` when it does.
    ///
    /// # Errors
    /// A sentence for the person who asked for it.
    pub fn allows(&self, order: &Order, node: NodeId, now: Timestamp) -> Result<(), String> {
        self.accepts(&order.action)?;
        let name = order.action.name();
        if !self.require_signature.iter().any(|required| required == name.as_str()) {
            return Ok(());
        }
        let signature = order.signature.as_ref().ok_or_else(|| {
            format!("this machine's agent carries out {name} only with an operator's signature: hfctl command send --sign-with")
        })?;
        let key = OperatorPublicKey::from_bytes(signature.key);
        if !self.operators.iter().any(|pinned| pinned.parse() == Ok(key)) {
            return Err(format!(
                "this machine's agent does not know the key {key}: its owner lists operators' keys in agent.toml, [commands] \
                 operators"
            ));
        }
        let message = Signature::message(node, order.id, &order.arguments, signature.not_after);
        if !key.verifies(&message, &signature.bytes) {
            return Err("the signature is not for this command, or not for this node".into());
        }
        if now > signature.not_after.plus(LEEWAY) {
            return Err(format!(
                "the signature counted until {}, and by this machine's clock it is {now}",
                signature.not_after
            ));
        }
        Ok(())
    }

    /// Why a service's log is not read live here; `Ok` when it is. What takes a signature is done by commands alone.
    ///
    /// # Errors
    /// A sentence for the person who asked for it.
    pub fn allows_tail(&self, stack: &str, service: &str) -> Result<(), String> {
        self.accepts(&Action::ServiceLogs { stack: stack.to_owned(), service: service.to_owned(), lines: 1 })?;
        if self.require_signature.iter().any(|required| required == Name::ServiceLogs.as_str()) {
            return Err(
                "this machine's agent shows logs only with an operator's signature, which a live view has none of: use hfctl \
                 service logs --sign-with"
                    .into(),
            );
        }
        Ok(())
    }

    /// Why an action is not accepted here.
    fn accepts(&self, action: &Action) -> Result<(), String> {
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
        assert_eq!(policy.accepts(&restart("shop")), Ok(()));
        assert_eq!(policy.accepts(&Action::Diagnostics), Ok(()));
        let stop = Action::ServiceStop { stack: "shop".into(), service: "web".into() };
        assert!(policy.accepts(&stop).unwrap_err().contains("service.stop"));
        assert!(
            policy.accepts(&Action::Script { name: "rotate".into() }).unwrap_err().contains("no script \"rotate\"")
        );
    }

    #[test]
    fn an_owner_narrows_and_widens_it() {
        let policy = Policy {
            accept: vec!["service.restart".into()],
            projects: vec!["shop".into()],
            scripts: BTreeMap::from([("rotate".into(), "/usr/local/sbin/rotate".into())]),
            ..Policy::default()
        };
        policy.checked().unwrap();
        assert_eq!(policy.accepts(&restart("shop")), Ok(()));
        assert!(policy.accepts(&restart("other")).unwrap_err().contains("the project other"));
        assert!(policy.accepts(&Action::Drain).is_err());
        assert_eq!(policy.accepts(&Action::Script { name: "rotate".into() }), Ok(()));
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
        let hasty = Policy { backup_within: Period(Duration::ZERO), ..Policy::default() };
        assert!(hasty.checked().unwrap_err().to_string().contains("from 1s to 1d"));
        assert!(scripts("a b", "/bin/rotate").checked().is_err());
    }

    #[test]
    fn a_log_is_read_live_where_it_may_be_read_without_a_signature() {
        let tail = |policy: Policy| policy.allows_tail("shop", "web");
        assert_eq!(tail(Policy::default()), Ok(()));
        assert!(
            tail(Policy { accept: vec!["drain".into()], ..Policy::default() }).unwrap_err().contains("service.logs")
        );
        assert!(tail(Policy { projects: vec!["other".into()], ..Policy::default() }).unwrap_err().contains("shop"));
        let signed = Policy { require_signature: vec!["service.logs".into()], ..Policy::default() };
        assert!(tail(signed).unwrap_err().contains("--sign-with"));
    }

    const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);

    fn ids(number: u8) -> (NodeId, protocol::CommandId) {
        (NodeId::new(NOW, [number; 10]), protocol::CommandId::new(NOW, [number; 10]))
    }

    fn signed(key: &pki::OperatorKey, (node, id): (NodeId, protocol::CommandId), until: Timestamp) -> Order {
        let action = restart("shop");
        let arguments = action.to_bytes();
        let bytes = key.sign(&Signature::message(node, id, &arguments, until));
        let signature = Some(Signature { key: key.public().to_bytes(), bytes, not_after: until });
        Order { id, action, remaining: Duration::from_secs(60), priority: 0, arguments, signature }
    }

    #[test]
    fn what_takes_a_signature_is_done_with_the_right_one_alone() {
        let (key, stranger) = (pki::OperatorKey::generate().unwrap(), pki::OperatorKey::generate().unwrap());
        let policy = Policy {
            require_signature: vec!["service.restart".into()],
            operators: vec![key.public().to_string()],
            ..Policy::default()
        };
        policy.checked().unwrap();
        let (node, id) = ids(1);
        let good = signed(&key, (node, id), NOW.plus(Duration::from_secs(60)));
        assert_eq!(policy.allows(&good, node, NOW), Ok(()));
        let refused = |order: &Order, now| policy.allows(order, node, now).unwrap_err();
        let unsigned = Order { signature: None, ..good.clone() };
        assert!(refused(&unsigned, NOW).contains("--sign-with"));
        assert!(
            refused(&signed(&stranger, (node, id), good.signature.as_ref().unwrap().not_after), NOW)
                .contains("does not know the key")
        );
        // Of another node, another command, another action, another time.
        let elsewhere = signed(&key, (ids(2).0, id), NOW);
        let another = Order { id: ids(2).1, ..good.clone() };
        let other_arguments = restart("other").to_bytes();
        let changed = Order { action: restart("other"), arguments: other_arguments, ..good.clone() };
        let mut longer = good.clone();
        longer.signature.as_mut().unwrap().not_after = NOW.plus(LEEWAY);
        for order in [elsewhere, another, changed, longer] {
            assert!(refused(&order, NOW).contains("not for this command"), "{order:?}");
        }
        let old = signed(&key, (node, id), NOW);
        assert_eq!(policy.allows(&old, node, NOW.plus(LEEWAY)), Ok(()), "this machine's clock may be a day ahead");
        assert!(refused(&old, NOW.plus(LEEWAY).plus(Duration::from_secs(1))).contains("counted until"));
        let drain = Order { action: Action::Drain, ..unsigned };
        assert_eq!(policy.allows(&drain, node, NOW), Ok(()), "what takes none is done without");
    }

    #[test]
    fn signatures_that_nobody_could_give_are_not_asked_for() {
        let policy = |require: &str, operators: &[&str]| Policy {
            require_signature: vec![require.into()],
            operators: operators.iter().map(|key| (*key).into()).collect(),
            ..Policy::default()
        };
        assert!(policy("drain", &[]).checked().unwrap_err().to_string().contains("at least one key"));
        assert!(policy("fly", &[]).checked().unwrap_err().to_string().contains("no action"));
        assert!(policy("drain", &["hfop_x"]).checked().unwrap_err().to_string().contains("no operator's public key"));
    }
}
