//! What an operator signs: one command for each node, checked against the nodes that were named, and shown before it is signed.

use std::time::{Duration, SystemTime};

use data_encoding::BASE64;
use pki::OperatorKey;
use protocol::command::{Action, Signature};
use protocol::id::IdError;
use protocol::{CommandId, NodeId, Timestamp};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::output::{complain, counted, text};

/// Most commands that are signed at once: a hub takes requests of up to 64 KiB, and each needs some 200 bytes, and 40 more where
/// its node is named.
const MOST: usize = 250;
/// Nodes that an error names; more are counted.
const NAMED: usize = 10;

/// Commands to be signed. Of the hub only ids and names are taken: what is to be done is signed as it is understood here.
#[derive(Debug)]
pub(super) struct Signing {
    action: Action,
    commands: Vec<Unsigned>,
}

#[derive(Debug)]
struct Unsigned {
    id: CommandId,
    node: NodeId,
    /// By the hub's word.
    name: String,
}

impl Signing {
    /// Those of the hub's preview of `asked`. Where the operator has named nodes, they are for these, one for each.
    pub(super) fn of(preview: &Value, asked: &Value, action: Action) -> Result<Self, Failure> {
        let strange =
            |_: IdError| Failure::Failed("the hub's preview has ids that are none: is it of another version?".into());
        let unsigned = |command: &Value| {
            let name = format!("{} of {}", text(command, "/name"), text(command, "/tenant")).replace('\n', " ");
            let (id, node) = (text(command, "/id").parse()?, text(command, "/node").parse()?);
            Ok(Unsigned { id, node, name })
        };
        let commands = preview["commands"].as_array().into_iter().flatten().map(unsigned);
        let commands = commands.collect::<Result<Vec<Unsigned>, IdError>>().map_err(strange)?;
        if commands.len() > MOST {
            return Err(Failure::Usage(format!(
                "{} nodes are meant, and at most {MOST} commands are signed at once: narrow it down",
                commands.len()
            )));
        }
        let named = asked["target"]["nodes"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let named = named.map(str::parse).collect::<Result<Vec<NodeId>, IdError>>();
        let named = named.map_err(|error| Failure::Usage(error.to_string()))?;
        let wrong = differences(&commands, &named);
        if !wrong.is_empty() {
            let more = if wrong.len() > NAMED { format!(", and {} more", wrong.len() - NAMED) } else { String::new() };
            let first = wrong.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
            return Err(Failure::Failed(format!(
                "the hub wants other commands signed than were asked for, and nothing was signed or done: {first}{more}; find out \
                 why before you sign anything for this hub"
            )));
        }
        Ok(Self { action, commands })
    }

    /// Says what is to be signed, and for which nodes: every one of them.
    pub(super) fn show(&self) {
        let on = counted(self.commands.len() as u64, "node", "nodes");
        complain(&format!("to be signed: {} on {on}", self.action));
        for Unsigned { node, name, .. } in &self.commands {
            complain(&format!("  {node}  {name}"));
        }
    }

    /// Signs them, so that they may begin from now on for as long as `valid_for`; gives what the hub takes.
    pub(super) fn sign(&self, key: &OperatorKey, valid_for: Duration) -> Value {
        let arguments = self.action.to_bytes();
        let not_after = Timestamp::from(SystemTime::now()).plus(valid_for);
        let signed = |Unsigned { id, node, .. }: &Unsigned| {
            let signature = key.sign(&Signature::message(*node, *id, &arguments, not_after));
            json!({ "node": node.to_string(), "id": id.to_string(), "signature": BASE64.encode(&signature) })
        };
        json!({
            "key": key.public().to_string(),
            "not_after_ms": not_after.millis(),
            "arguments": BASE64.encode(&arguments),
            "commands": self.commands.iter().map(signed).collect::<Vec<Value>>(),
        })
    }
}

/// What of the hub's commands is not as it was asked for: each node has one, and where some were named, it is those.
fn differences(commands: &[Unsigned], named: &[NodeId]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (place, Unsigned { id, node, name }) in commands.iter().enumerate() {
        if !named.is_empty() && !named.contains(node) {
            wrong.push(format!("{node} ({name}) was not named"));
        } else if commands.iter().take(place).any(|before| before.node == *node || before.id == *id) {
            wrong.push(format!("{node} ({name}) is there twice"));
        }
    }
    let missing = named.iter().filter(|named| !commands.iter().any(|command| command.node == **named));
    wrong.extend(missing.map(|node| format!("{node} is missing")));
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: usize) -> String {
        format!("019ab0c2-7f00-7000-8000-{number:012}")
    }

    fn preview(nodes: impl Iterator<Item = usize>) -> Value {
        let command = |(place, number)| json!({ "node": node(number), "id": node(10_000 + place), "name": format!("plant-{number}"), "tenant": "acme" });
        json!({ "commands": nodes.enumerate().map(command).collect::<Vec<_>>() })
    }

    fn named(nodes: impl Iterator<Item = usize>) -> Value {
        json!({ "target": { "nodes": nodes.map(node).collect::<Vec<_>>() } })
    }

    #[test]
    fn nothing_is_signed_for_a_node_that_was_not_named_and_nothing_twice() {
        let of = |preview: &Value, asked: &Value| Signing::of(preview, asked, Action::Drain);
        for (given, words) in [
            (&[1, 2, 3][..], "-000000000003 (plant-3 of acme) was not named"),
            (&[1, 3], "-000000000003 (plant-3 of acme) was not named, 019ab0c2-7f00-7000-8000-000000000002 is missing"),
            (&[1], "-000000000002 is missing"),
            (&[], "-000000000001 is missing"),
            (&[1, 2, 1], "-000000000001 (plant-1 of acme) is there twice"),
        ] {
            let refused = of(&preview(given.iter().copied()), &named(1..3)).expect_err("refused").to_string();
            assert!(refused.contains(words) && refused.contains("nothing was signed"), "{refused}");
        }
        // In another order, and named twice or in capitals, they are the same nodes.
        let asked = json!({ "target": { "nodes": [node(1), node(2).to_uppercase(), node(1)] } });
        assert_eq!(of(&preview([2, 1].into_iter()), &asked).expect("they are").commands.len(), 2);
        let chosen = json!({ "target": { "nodes": [], "all": true } });
        assert_eq!(of(&preview(1..4), &chosen).expect("whoever they are").commands.len(), 3);
        let refused = of(&preview([1, 1].into_iter()), &chosen).expect_err("refused").to_string();
        assert!(refused.contains("is there twice"), "{refused}");
        let strange = json!({ "commands": [{ "node": "press", "id": node(1) }] });
        assert!(of(&strange, &chosen).expect_err("refused").to_string().contains("another version"));
    }

    #[test]
    fn as_many_as_may_be_signed_at_once_fit_in_a_request() {
        let key = OperatorKey::generate().expect("a key");
        // Named one by one they take the most.
        let mut asked = named(0..MOST);
        let signing = Signing::of(&preview(0..MOST), &asked, Action::Drain).expect("as named");
        asked["action"] = json!("drain");
        asked["reason"] = json!("\u{1F3ED}".repeat(500));
        asked["signed"] = signing.sign(&key, Duration::from_secs(60));
        assert!(asked.to_string().len() < 64 * 1024 - 1024, "{}", asked.to_string().len());
        let refused = Signing::of(&preview(0..MOST + 1), &asked, Action::Drain).expect_err("too many");
        assert!(refused.to_string().starts_with("251 nodes are meant, and at most 250"), "{refused}");
    }
}
