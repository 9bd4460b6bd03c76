//! Authorities that should have been followed by new ones, or that wait to be the first: one rule, and what is open of it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use protocol::{TenantId, Timestamp};

use super::{Change, Finding, Rule};
use crate::authorities::Listed;
use crate::telemetry::state::Level;

/// So long after its time an authority may still be without a successor: the hub looks every hour.
const PATIENCE: Duration = Duration::from_secs(2 * 3600);
/// State of an authority that has a key and no certificate: it can't follow anything yet.
const UNSIGNED: &str = "awaiting-signature";
/// With less left than this, nodes will soon be locked out.
const CRITICAL: Duration = Duration::from_secs(30 * 86_400);

/// Which authority: its tenant, its kind and its generation, as `nodes/3`.
type Place = (Option<TenantId>, String);

/// Alerts that are open, with what was said when they opened.
#[derive(Default)]
pub(super) struct Watch(BTreeMap<Place, (Level, String)>);

impl Watch {
    /// Takes over an alert that is open already.
    pub(super) fn restore(&mut self, tenant: Option<TenantId>, subject: &str, level: Level, message: &str) {
        self.0.insert((tenant, subject.to_owned()), (level, message.to_owned()));
    }

    /// Judges all authorities as they are now.
    pub(super) fn observe(&mut self, listed: &[Listed], now: Timestamp) -> Vec<Change> {
        let late: BTreeMap<Place, (Level, String)> = listed.iter().filter_map(|one| judge(one, listed, now)).collect();
        let finding = |place: &Place, (level, message): &(Level, String)| Finding {
            tenant: place.0.clone(),
            node: None,
            rule: Rule::AuthorityEnding,
            subject: place.1.clone(),
            level: *level,
            message: message.clone(),
            at: now,
        };
        let mut changes = Vec::new();
        self.0.retain(|place, said| {
            let stays = late.contains_key(place);
            if !stays {
                changes.push(Change::Closed(finding(place, said)));
            }
            stays
        });
        for (place, said) in late {
            if let Entry::Vacant(vacant) = self.0.entry(place) {
                changes.push(Change::Opened(finding(vacant.key(), &said)));
                vacant.insert(said);
            }
        }
        changes
    }
}

/// What is wrong with an authority: it still issues, its time to be followed is over, and nothing is there to follow it; or
/// it is to be a tenant's first, and its root has not signed it yet.
fn judge(one: &Listed, listed: &[Listed], now: Timestamp) -> Option<(Place, (Level, String))> {
    let same = |other: &Listed| other.kind == one.kind && other.tenant == one.tenant;
    if one.state == UNSIGNED && !listed.iter().any(|other| same(other) && matches!(&*other.state, "active" | "trusted"))
    {
        let message = "no node can enroll: the tenant's first authority awaits the signature of the fleet root, which is kept \
                       offline: see `hyperfactory-hub ca root requests`";
        return Some((place(one)?, (Level::Warning, message.to_owned())));
    }
    let (by, ends) = (one.renew_by?, one.not_after?);
    if one.state != "active" || now < by.plus(PATIENCE) || one.followers(listed).any(|other| other.state != UNSIGNED) {
        return None;
    }
    let unsigned = one.followers(listed).next().is_some();
    let (what, advice) = match one.kind.as_str() {
        "root" => ("the fleet's root", "rotate it: see `hfctl ca --help`"),
        "kafka" => ("the tenant's Kafka root", "rotate it: see `hfctl ca --help`"),
        "hub" => ("the hub's intermediate", "the hub could not make its successor: its log says why"),
        _ => ("the nodes' intermediate", "the hub could not make its successor: its log says why"),
    };
    let advice =
        if unsigned { "its successor awaits a signature: see `hyperfactory-hub ca root requests`" } else { advice };
    let level = if ends.since(now) < CRITICAL { Level::Critical } else { Level::Warning };
    let message = format!("{what} ends at {ends} and should have been followed by {by}: {advice}");
    Some((place(one)?, (level, message)))
}

fn place(one: &Listed) -> Option<Place> {
    let tenant = one.tenant.as_deref().map(str::parse).transpose().ok()?;
    Some((tenant, format!("{}/{}", one.kind, one.generation)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn day(day: u32) -> Timestamp {
        Timestamp::from_millis(1_790_000_000_000).plus(DAY * day)
    }

    fn one(kind: &str, tenant: Option<&str>, generation: i64, state: &str) -> Listed {
        Listed {
            id: generation,
            kind: kind.into(),
            tenant: tenant.map(str::to_owned),
            generation,
            state: state.into(),
            spki_sha256: String::new(),
            created_at: day(0),
            not_after: Some(day(365)),
            followed_at: None,
            renew_by: Some(day(255)),
            certificates: 0,
        }
    }

    fn tell(change: &Change) -> (bool, Option<&str>, &str, Level) {
        let (Change::Opened(finding) | Change::Closed(finding)) = change;
        assert_eq!((finding.rule, finding.node), (Rule::AuthorityEnding, None));
        let opened = matches!(change, Change::Opened(_));
        (opened, finding.tenant.as_ref().map(TenantId::as_str), finding.subject.as_str(), finding.level)
    }

    fn told(changes: &[Change]) -> Vec<(bool, Option<&str>, &str, Level)> {
        changes.iter().map(tell).collect()
    }

    #[test]
    fn an_authority_past_its_time_is_told_once_until_it_has_a_successor() {
        let mut watch = Watch::default();
        let mut all = vec![one("root", None, 1, "active"), one("nodes", Some("acme"), 2, "active")];
        assert_eq!(watch.observe(&all, day(255).plus(PATIENCE / 2)), []);
        let late = day(256);
        let opened = [(true, None, "root/1", Level::Warning), (true, Some("acme"), "nodes/2", Level::Warning)];
        assert_eq!(told(&watch.observe(&all, late)), opened);
        assert_eq!(watch.observe(&all, late), []);
        // A next root that is introduced, and a new intermediate that is trusted already.
        all[1].state = "trusted".into();
        all.extend([one("root", None, 2, "pending"), one("nodes", Some("acme"), 3, "trusted")]);
        let closed = opened.map(|(_, tenant, subject, level)| (false, tenant, subject, level));
        assert_eq!(told(&watch.observe(&all, late)), closed);
        // One that was called off is none.
        all[2].state = "retired".into();
        assert_eq!(told(&watch.observe(&all, day(340))), [(true, None, "root/1", Level::Critical)]);
    }

    #[test]
    fn a_successor_that_is_not_signed_is_none_and_that_is_said() {
        let all = [one("nodes", Some("acme"), 1, "active"), one("nodes", Some("acme"), 2, UNSIGNED)];
        let changes = Watch::default().observe(&all, day(256));
        assert_eq!(told(&changes), [(true, Some("acme"), "nodes/1", Level::Warning)]);
        let [Change::Opened(finding)] = changes.as_slice() else { panic!("{changes:?}") };
        assert!(finding.message.contains("its successor awaits a signature"), "{}", finding.message);
    }

    #[test]
    fn a_tenants_first_that_is_not_signed_is_told_at_once() {
        let mut watch = Watch::default();
        let mut all = [one("nodes", Some("acme"), 1, "active"), one("nodes", Some("zeta"), 1, UNSIGNED)];
        let changes = watch.observe(&all, day(1));
        assert_eq!(told(&changes), [(true, Some("zeta"), "nodes/1", Level::Warning)]);
        let [Change::Opened(finding)] = changes.as_slice() else { panic!("{changes:?}") };
        assert!(finding.message.contains("hyperfactory-hub ca root requests"), "{}", finding.message);
        all[1].state = "active".into();
        assert_eq!(told(&watch.observe(&all, day(2))), [(false, Some("zeta"), "nodes/1", Level::Warning)]);
    }

    #[test]
    fn another_tenants_successor_is_none() {
        let mut watch = Watch::default();
        let all = [one("nodes", Some("acme"), 1, "active"), one("nodes", Some("zeta"), 2, "active")];
        assert_eq!(watch.observe(&all, day(256)).len(), 2);
    }

    #[test]
    fn an_alert_of_the_run_before_is_closed_when_it_is_over() {
        let mut watch = Watch::default();
        watch.restore(None, "root/1", Level::Critical, "it ends");
        let closed = watch.observe(&[one("root", None, 2, "active")], day(1));
        assert_eq!(told(&closed), [(false, None, "root/1", Level::Critical)]);
    }
}
