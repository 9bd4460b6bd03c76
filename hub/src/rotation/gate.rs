//! What has to be so before a rotation takes a step, and who is not ready yet.

use std::collections::{BTreeMap, HashSet};

use pki::{Role, Summary};
use protocol::Timestamp;
use store::sqlx::any::AnyRow;
use store::sqlx::{self, Row};
use store::{StoreError, Transaction};

use super::phase::{Direction, Phase};
use super::{Rotation, RotationError};
use crate::authorities::place;

/// Who is not ready for a step, and what else it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    /// Where the step leads.
    pub to: Phase,
    /// Everyone who is not ready, by tenant and name.
    pub missing: Vec<Missing>,
    /// Whether an operator has to confirm that the tenant's brokers have been seen to: no program can look there.
    pub brokers: bool,
    /// Whether the root, whose key is kept offline, has to sign something first: the successor, or the link to the next root.
    pub unsigned: bool,
    /// Join tokens that can be used until then, and not any more.
    pub tokens: i64,
}

/// A node, or a certificate of brokers, that is not ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The node's id, or the serial of the brokers' certificate.
    pub id: String,
    /// The node's name, or the names in the certificate.
    pub name: String,
    /// Whose it is.
    pub tenant: String,
    /// `agent`, `bridge` or `broker`.
    pub kind: String,
    /// `online`, `lost`, `left` or `never_seen`; of brokers, nothing is known.
    pub presence: Option<String>,
    /// Since when it is so.
    pub since: Option<Timestamp>,
    /// Why it is not ready.
    pub why: String,
}

/// What every node, or certificate, has to fulfil.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Nothing,
    /// The node has said that it trusts the new root.
    TrustsNew,
    /// The node uses a certificate of the new one's.
    UsesNew,
    /// The node has said that it trusts the new root and not the old one.
    TrustsNewAlone,
    /// The node uses no certificate of the new one's.
    UsesOld,
    /// No bridge and no broker depends on the old Kafka root.
    KafkaUsesNew,
    /// No bridge and no broker depends on the new Kafka root.
    KafkaUsesOld,
}

impl Wanted {
    fn of(role: &Role, from: Phase, direction: Direction) -> Self {
        match (role, from, direction) {
            (Role::Root, Phase::Trust, Direction::Forward) => Self::TrustsNew,
            (Role::Root | Role::Nodes(_), Phase::Issue, Direction::Forward) => Self::UsesNew,
            (Role::Root, Phase::Retire, Direction::Forward) => Self::TrustsNewAlone,
            (Role::Root | Role::Nodes(_), Phase::Trust, Direction::Back) => Self::UsesOld,
            (Role::Kafka(_), Phase::Issue, Direction::Forward) => Self::KafkaUsesNew,
            (Role::Kafka(_), Phase::Trust, Direction::Back) => Self::KafkaUsesOld,
            _ => Self::Nothing,
        }
    }
}

/// The gate before the next step of `rotation`; `None` when it is over.
pub(super) async fn look(
    transaction: &mut Transaction,
    rotation: &Rotation,
    direction: Direction,
    now: Timestamp,
) -> Result<Option<Gate>, RotationError> {
    let Some(to) = rotation.phase.step(direction) else { return Ok(None) };
    let wanted = Wanted::of(&rotation.role, rotation.phase, direction);
    let missing = match wanted {
        Wanted::Nothing => Vec::new(),
        Wanted::KafkaUsesNew | Wanted::KafkaUsesOld => kafka(transaction, rotation, wanted, now).await?,
        _ => nodes(transaction, rotation, wanted).await?,
    };
    let brokers = matches!(
        (&rotation.role, rotation.phase, direction),
        (Role::Kafka(_), Phase::Trust | Phase::Issue, Direction::Forward)
    );
    let outdated = match (&rotation.role, rotation.phase, direction) {
        (Role::Root, Phase::Issue, Direction::Forward) => Some(rotation.old),
        (Role::Root, Phase::Trust, Direction::Back) => Some(rotation.new),
        _ => None,
    };
    let tokens = match outdated {
        Some(root) => tokens(transaction, root, now).await?,
        None => 0,
    };
    let unsigned = match (rotation.phase, direction) {
        (Phase::Prepare, Direction::Forward) => unsigned(transaction, rotation).await?,
        _ => false,
    };
    Ok(Some(Gate { to, missing, brokers, unsigned, tokens }))
}

async fn unsigned(transaction: &mut Transaction, rotation: &Rotation) -> Result<bool, StoreError> {
    let sql = match rotation.role {
        Role::Root => "SELECT COUNT(*) FROM root_links WHERE introduced = $1",
        _ => "SELECT COUNT(*) FROM authorities WHERE id = $1 AND certificate IS NOT NULL",
    };
    let signed: i64 = sqlx::query_scalar(sql).bind(rotation.new).fetch_one(&mut **transaction).await?;
    Ok(signed == 0)
}

/// Unused join tokens that name this root.
async fn tokens(transaction: &mut Transaction, root: i64, now: Timestamp) -> Result<i64, StoreError> {
    let count = sqlx::query_scalar(
        "SELECT COUNT(*) FROM join_tokens WHERE used_at IS NULL AND expires_at > $2
           AND root_pin = (SELECT spki_sha256 FROM authorities WHERE id = $1)",
    )
    .bind(root)
    .bind(now.millis())
    .fetch_one(&mut **transaction)
    .await?;
    Ok(count)
}

/// A node and its certificates, as far as they count here.
struct Node {
    id: String,
    tenant: String,
    name: String,
    kind: String,
    roots: Vec<[u8; 32]>,
    trouble: String,
    frozen: bool,
    presence: String,
    since: Option<Timestamp>,
    /// The authority of the certificate that a session has used last.
    used: Option<i64>,
    /// That of the newest certificate that none has used yet.
    unused: Option<i64>,
}

impl Node {
    fn read(row: &AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            id: row.try_get(0)?,
            tenant: row.try_get(1)?,
            name: row.try_get(2)?,
            kind: row.try_get(3)?,
            roots: row.try_get::<Option<Vec<u8>>, _>(4)?.unwrap_or_default().as_chunks().0.to_vec(),
            trouble: row.try_get::<Option<String>, _>(5)?.unwrap_or_default(),
            frozen: row.try_get::<Option<i64>, _>(6)?.is_some(),
            presence: row.try_get::<Option<String>, _>(7)?.unwrap_or_else(|| "never_seen".to_owned()),
            since: row.try_get::<Option<i64>, _>(8)?.map(Timestamp::from_millis),
            used: None,
            unused: None,
        })
    }

    /// What it comes with: until a session has used one, the newest that it was given.
    fn uses(&self, of_new: &HashSet<i64>) -> Option<bool> {
        self.used.or(self.unused).map(|authority| of_new.contains(&authority))
    }

    /// Why it is not ready; `None` when it is.
    fn lacks(&self, wanted: Wanted, sides: &Sides) -> Option<String> {
        let trusts = |pin: &[u8; 32]| self.roots.contains(pin);
        let why = match wanted {
            Wanted::TrustsNew if trusts(&sides.new_pin) => return None,
            Wanted::TrustsNewAlone if trusts(&sides.new_pin) && !trusts(&sides.old_pin) => return None,
            Wanted::TrustsNew | Wanted::TrustsNewAlone => {
                if self.roots.is_empty() {
                    "has not said which roots it trusts".to_owned()
                } else if !self.trouble.is_empty() {
                    format!("did not take the roots it was told: {}", self.trouble)
                } else if trusts(&sides.new_pin) {
                    "still trusts the old root".to_owned()
                } else {
                    "does not trust the new root yet".to_owned()
                }
            }
            Wanted::UsesNew if self.uses(&sides.of_new) == Some(true) => return None,
            Wanted::UsesNew if self.unused.is_some_and(|authority| sides.of_new.contains(&authority)) => {
                "has a certificate of the new one's, and has not used it yet".to_owned()
            }
            Wanted::UsesNew => "uses a certificate of the old one's".to_owned(),
            Wanted::UsesOld if self.uses(&sides.of_new) != Some(true) => return None,
            Wanted::UsesOld => "uses a certificate of the new one's".to_owned(),
            Wanted::Nothing | Wanted::KafkaUsesNew | Wanted::KafkaUsesOld => return None,
        };
        Some(if self.frozen { format!("frozen; {why}") } else { why })
    }
}

/// What is told apart.
struct Sides {
    old_pin: [u8; 32],
    new_pin: [u8; 32],
    /// The authorities whose certificates count as the new one's.
    of_new: HashSet<i64>,
}

impl Sides {
    async fn of(transaction: &mut Transaction, rotation: &Rotation) -> Result<Self, StoreError> {
        let of_new: Vec<i64> = match &rotation.role {
            Role::Root => {
                let sql = "SELECT id FROM authorities WHERE kind = 'nodes' AND issuer = $1";
                sqlx::query_scalar(sql).bind(rotation.new).fetch_all(&mut **transaction).await?
            }
            role => {
                // One that has followed the successor meanwhile is as good.
                let (kind, tenant) = place(role);
                sqlx::query_scalar(
                    "SELECT id FROM authorities WHERE kind = $1 AND COALESCE(tenant, '') = $2
                       AND generation >= (SELECT generation FROM authorities WHERE id = $3)",
                )
                .bind(kind)
                .bind(tenant)
                .bind(rotation.new)
                .fetch_all(&mut **transaction)
                .await?
            }
        };
        let mut pins = [[0; 32]; 2];
        for (pin, id) in pins.iter_mut().zip([rotation.old, rotation.new]) {
            let stored: Vec<u8> = sqlx::query_scalar("SELECT spki_sha256 FROM authorities WHERE id = $1")
                .bind(id)
                .fetch_one(&mut **transaction)
                .await?;
            *pin = stored.try_into().unwrap_or_default();
        }
        let [old_pin, new_pin] = pins;
        Ok(Self { old_pin, new_pin, of_new: of_new.into_iter().collect() })
    }
}

async fn nodes(transaction: &mut Transaction, rotation: &Rotation, wanted: Wanted) -> Result<Vec<Missing>, StoreError> {
    let sides = Sides::of(transaction, rotation).await?;
    let tenant = match &rotation.role {
        Role::Nodes(tenant) => tenant.as_str(),
        _ => "",
    };
    let rows = sqlx::query(
        "SELECT n.id, n.tenant, n.name, n.kind, n.roots, n.roots_trouble, n.frozen_at, s.presence, s.since,
                c.authority, c.state
         FROM nodes n LEFT JOIN node_states s ON s.node = n.id
         LEFT JOIN certificates c ON c.node = n.id AND c.kind = n.kind AND c.state IN ('issued', 'active')
         WHERE n.removed_at IS NULL AND n.revoked_at IS NULL AND ($1 = '' OR n.tenant = $1)
         ORDER BY n.tenant, n.name, n.id, c.issued_at",
    )
    .bind(tenant)
    .fetch_all(&mut **transaction)
    .await?;
    let mut missing = Vec::new();
    let mut settle = |node: Node| {
        if let Some(why) = node.lacks(wanted, &sides) {
            let Node { id, tenant, name, kind, presence, since, .. } = node;
            missing.push(Missing { id, name, tenant, kind, presence: Some(presence), since, why });
        }
    };
    let mut current: Option<Node> = None;
    for row in &rows {
        let id: String = row.try_get(0)?;
        if current.as_ref().is_none_or(|node| node.id != id)
            && let Some(done) = current.replace(Node::read(row)?)
        {
            settle(done);
        }
        if let (Some(node), Some(authority)) = (&mut current, row.try_get::<Option<i64>, _>(9)?) {
            match row.try_get::<String, _>(10)?.as_str() {
                "active" => node.used = Some(authority),
                _ => node.unused = Some(authority),
            }
        }
    }
    current.into_iter().for_each(settle);
    Ok(missing)
}

/// Bridges whose Kafka certificate is of the wrong root, by what they said that they use; and live certificates of brokers that none of the right one
/// takes the place of.
async fn kafka(
    transaction: &mut Transaction,
    rotation: &Rotation,
    wanted: Wanted,
    now: Timestamp,
) -> Result<Vec<Missing>, StoreError> {
    let Role::Kafka(tenant) = &rotation.role else { return Ok(Vec::new()) };
    let of_new = Sides::of(transaction, rotation).await?.of_new;
    let is_wrong = |authority: i64| of_new.contains(&authority) == (wanted == Wanted::KafkaUsesOld);
    let why = match wanted {
        Wanted::KafkaUsesOld => "has a certificate of the new Kafka root's",
        _ => "has a certificate of the old Kafka root's",
    };
    let rows = sqlx::query(
        "SELECT n.id, n.name, s.presence, s.since, c.authority, c.state
         FROM certificates c JOIN nodes n ON n.id = c.node LEFT JOIN node_states s ON s.node = n.id
         WHERE c.tenant = $1 AND c.kind = 'kafka-client' AND c.state IN ('issued', 'active') AND c.not_after > $2
           AND n.removed_at IS NULL AND n.revoked_at IS NULL
         ORDER BY CASE c.state WHEN 'active' THEN 1 ELSE 0 END, c.issued_at",
    )
    .bind(tenant.as_str())
    .bind(now.millis())
    .fetch_all(&mut **transaction)
    .await?;
    // The last of each: the one it uses, or until it has said so, the newest that it was given.
    let mut bridges: BTreeMap<(String, String), (&AnyRow, bool)> = BTreeMap::new();
    for row in &rows {
        let right = !is_wrong(row.try_get(4)?);
        let known = bridges.entry((row.try_get(1)?, row.try_get(0)?)).or_insert((row, false));
        *known = (row, known.1 || right);
    }
    let mut missing = Vec::new();
    for ((name, id), (row, has_right)) in bridges {
        if is_wrong(row.try_get(4)?) {
            let why = if has_right {
                format!("{why}, and has not used the one it was given since: its brokers may not take it")
            } else {
                why.to_owned()
            };
            let presence = row.try_get::<Option<String>, _>(2)?.unwrap_or_else(|| "never_seen".to_owned());
            missing.push(Missing {
                id,
                name,
                tenant: tenant.to_string(),
                kind: "bridge".to_owned(),
                presence: Some(presence),
                since: row.try_get::<Option<i64>, _>(3)?.map(Timestamp::from_millis),
                why,
            });
        }
    }
    let rows = sqlx::query(
        "SELECT authority, serial, certificate FROM certificates
         WHERE tenant = $1 AND kind = 'kafka-server' AND state IN ('issued', 'active') AND not_after > $2
         ORDER BY issued_at",
    )
    .bind(tenant.as_str())
    .bind(now.millis())
    .fetch_all(&mut **transaction)
    .await?;
    let (mut right, mut wrong) = (Vec::new(), Vec::new());
    for row in &rows {
        let names = Summary::of(&row.try_get::<Vec<u8>, _>(2)?).map(|summary| summary.names).unwrap_or_default();
        if is_wrong(row.try_get(0)?) {
            wrong.push((data_encoding::HEXLOWER.encode(&row.try_get::<Vec<u8>, _>(1)?), names));
        } else {
            right.push(names);
        }
    }
    // Nobody tells the hub which certificate a broker shows: one for the same names is taken to be in its place.
    let replaces = |other: &Vec<String>, names: &Vec<String>| {
        other == names || (!names.is_empty() && names.iter().all(|name| other.contains(name)))
    };
    wrong.retain(|(_, names)| !right.iter().any(|other| replaces(other, names)));
    missing.extend(wrong.into_iter().map(|(serial, names)| Missing {
        id: serial,
        name: names.join(" "),
        tenant: tenant.to_string(),
        kind: "broker".to_owned(),
        presence: None,
        since: None,
        why: why.to_owned(),
    }));
    Ok(missing)
}
