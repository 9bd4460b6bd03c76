//! The evaluator: patience, memory and hysteresis around the rules. Views and times in, openings and closings out.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use protocol::message::Service;
use protocol::{NodeId, TenantId, Timestamp};

use super::rules::{self, Judgement};
use super::{Policy, Rule};
use crate::rows;
use crate::telemetry::state::{Attention, Level, NodeView, Reason, Services, service_name};

/// Restarts remembered of one service.
const RESTARTS: usize = 16;

/// Judges nodes as they change and as time passes.
pub struct Evaluator {
    policy: Policy,
    started_at: Timestamp,
    /// When it was last asked what is due.
    asked_at: Timestamp,
    nodes: HashMap<NodeId, Node>,
}

/// Something opened or closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It needs attention from now on.
    Opened(Finding),
    /// It is over.
    Closed(Finding),
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whose node or authority; `None`: the fleet's.
    pub tenant: Option<TenantId>,
    /// The node; `None`: it is about an authority.
    pub node: Option<NodeId>,
    /// The rule.
    pub rule: Rule,
    /// The service, the authority, or empty for the node itself.
    pub subject: String,
    /// How urgent.
    pub level: Level,
    /// What is wrong and what to do.
    pub message: String,
    /// When it opened or closed.
    pub at: Timestamp,
}

#[derive(Default)]
struct Node {
    conditions: HashMap<(Rule, String), Condition>,
    /// When services restarted lately, by name; of most none ever does.
    restarts: HashMap<String, VecDeque<Timestamp>>,
    /// The services as last judged: while they are the same and nothing is pending, they need no second look.
    judged: Option<Arc<Services>>,
    /// Since when its services are watched without a break.
    watched_since: Option<Timestamp>,
    batches: Loss,
    records: Loss,
    /// When it must be looked at even if it does not change.
    due: Option<Timestamp>,
}

/// A count of what is lost, and when it last grew.
#[derive(Default)]
struct Loss {
    known: Option<u64>,
    grown_at: Option<Timestamp>,
}

impl Loss {
    /// Takes the count as it is now; what was lost before the first look is no news.
    fn take(&mut self, count: u64, now: Timestamp) {
        if self.known.replace(count).is_some_and(|before| count > before) {
            self.grown_at = Some(now);
        }
    }
}

/// One thing that is, or may become, an alert.
struct Condition {
    level: Level,
    message: String,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Wrong since then, not yet for long enough.
    Pending { since: Timestamp },
    /// An alert; and well since then, not yet for long enough.
    Open { well_since: Option<Timestamp> },
}

impl Evaluator {
    /// An evaluator of a hub that started at `started_at`: what was lost before counts from then.
    pub fn new(policy: Policy, started_at: Timestamp) -> Self {
        Self { policy, started_at, asked_at: started_at, nodes: HashMap::new() }
    }

    /// Takes over an alert that is open already.
    pub fn restore(&mut self, node: NodeId, rule: Rule, subject: &str, level: Level, message: &str) {
        let condition = Condition { level, message: message.to_owned(), state: State::Open { well_since: None } };
        self.nodes.entry(node).or_default().conditions.insert((rule, subject.to_owned()), condition);
    }

    /// Judges a node as it is now.
    pub fn observe(&mut self, view: &NodeView, now: Timestamp) -> Vec<Change> {
        let node = self.nodes.entry(view.node).or_default();
        let mut look = Look { policy: &self.policy, node, view, now, changes: Vec::new() };
        look.node.due = None;
        let refused = look.is_open(Rule::KafkaAccess);
        look.judge(Rule::KafkaAccess, "", rules::kafka_access(view, refused));
        if view.revoked_at.is_some() {
            // Nothing else of it needs attention any more.
            look.nothing_but(Rule::KafkaAccess);
            return look.changes;
        }
        look.judge(Rule::NodeLost, "", rules::node_lost(view, self.started_at));
        look.judge(Rule::NodeCloned, "", rules::cloned(view));
        look.judge(Rule::EngineUnreachable, "", rules::engine(view));
        look.judge(Rule::ClockSkew, "", rules::clock(view, &self.policy));
        look.judge(Rule::SpoolFault, "", rules::spool_fault(view));
        look.judge(Rule::KafkaRefused, "", rules::kafka_refused(view));
        look.judge(Rule::KafkaUnreachable, "", rules::kafka_unreachable(view));
        look.judge(Rule::KafkaCertificate, "", rules::kafka_certificate(view));
        look.spool_loss();
        look.certificate();
        look.services();
        look.changes
    }

    /// The node is no longer part of the fleet.
    pub fn forget(&mut self, node: NodeId) {
        self.nodes.remove(&node);
    }

    /// The nodes whose time has come. When the clock was set back it has for all: by it, their times may be far away. What was
    /// to come then is as if it were now.
    pub fn due(&mut self, now: Timestamp) -> Vec<NodeId> {
        let set_back = now < std::mem::replace(&mut self.asked_at, now);
        if set_back {
            self.nodes.values_mut().for_each(|node| node.set_back(now));
        }
        let due = |node: &Node| node.due.is_some_and(|due| set_back || due <= now);
        self.nodes.iter().filter(|(_, node)| due(node)).map(|(id, _)| *id).collect()
    }

    /// What is open at a node.
    pub fn attention(&self, node: NodeId) -> Attention {
        let Some(node) = self.nodes.get(&node) else { return Attention::default() };
        let mut reasons: Vec<Reason> = node
            .conditions
            .iter()
            .filter(|(_, condition)| matches!(condition.state, State::Open { .. }))
            .map(|((rule, subject), condition)| Reason {
                level: condition.level,
                rule: rule.as_str(),
                subject: subject.clone(),
                message: condition.message.clone(),
            })
            .collect();
        reasons.sort_by(|a, b| b.level.cmp(&a.level).then_with(|| (a.rule, &a.subject).cmp(&(b.rule, &b.subject))));
        Attention { level: reasons.first().map_or(Level::Ok, |reason| reason.level), reasons }
    }
}

impl Node {
    /// The clock was set back to `now`: nothing has happened after it.
    fn set_back(&mut self, now: Timestamp) {
        let losses = [&mut self.batches, &mut self.records].into_iter().filter_map(|loss| loss.grown_at.as_mut());
        let times = self.restarts.values_mut().flatten().chain(&mut self.watched_since).chain(losses);
        times.for_each(|at| *at = now.min(*at));
    }
}

/// One look at one node.
struct Look<'a> {
    policy: &'a Policy,
    node: &'a mut Node,
    view: &'a NodeView,
    now: Timestamp,
    changes: Vec<Change>,
}

impl Look<'_> {
    /// Steps one condition on.
    fn judge(&mut self, rule: Rule, subject: &str, judgement: Judgement) {
        let (opens_after, closes_after) = self.patience(rule);
        let key = (rule, subject.to_owned());
        let state = self.node.conditions.get(&key).map(|condition| condition.state);
        match (judgement, state) {
            (Judgement::Wrong { level, message, since }, None | Some(State::Pending { .. })) => {
                let since = match state {
                    Some(State::Pending { since }) => since,
                    _ => since.unwrap_or(self.now),
                };
                // What is still to come is of a clock that was set back.
                let since = since.min(self.now);
                let open = self.now.since(since) >= opens_after;
                let state = if open { State::Open { well_since: None } } else { State::Pending { since } };
                if open {
                    let finding = self.finding(rule, subject, level, &message);
                    self.changes.push(Change::Opened(finding));
                } else {
                    self.look_again(since.plus(opens_after));
                }
                self.node.conditions.insert(key, Condition { level, message, state });
            }
            (Judgement::Wrong { level, message, .. }, Some(State::Open { .. })) => {
                let Some(condition) = self.node.conditions.get_mut(&key) else { return };
                condition.state = State::Open { well_since: None };
                // What was said when it opened stands, the message is the row's; unless it is of another urgency now: then it is
                // another alert, and whoever was not called for the first one is for this.
                if condition.level != level {
                    let (was, said) = (condition.level, std::mem::replace(&mut condition.message, message.clone()));
                    condition.level = level;
                    self.changes.push(Change::Closed(self.finding(rule, subject, was, &said)));
                    self.changes.push(Change::Opened(self.finding(rule, subject, level, &message)));
                }
            }
            (Judgement::Unclear, Some(State::Open { .. })) => {
                if let Some(condition) = self.node.conditions.get_mut(&key) {
                    condition.state = State::Open { well_since: None };
                }
            }
            (Judgement::Well, Some(State::Open { well_since })) => {
                let since = well_since.unwrap_or(self.now).min(self.now);
                if self.now.since(since) >= closes_after {
                    if let Some(condition) = self.node.conditions.remove(&key) {
                        let finding = self.finding(rule, subject, condition.level, &condition.message);
                        self.changes.push(Change::Closed(finding));
                    }
                } else {
                    self.look_again(since.plus(closes_after));
                    if let Some(condition) = self.node.conditions.get_mut(&key) {
                        condition.state = State::Open { well_since: Some(since) };
                    }
                }
            }
            (Judgement::Well | Judgement::Unclear, Some(State::Pending { .. })) => {
                self.node.conditions.remove(&key);
            }
            (Judgement::Well | Judgement::Unclear, None) => {}
        }
    }

    /// How long a rule must be broken to open an alert, and kept to close it.
    fn patience(&self, rule: Rule) -> (Duration, Duration) {
        let policy = self.policy;
        match rule {
            Rule::NodeLost => (policy.lost_after, policy.back_for),
            Rule::ServiceUnhealthy | Rule::ServiceFailed => (policy.service_after, policy.service_well_for),
            Rule::EngineUnreachable => (policy.engine_after, policy.engine_after),
            // Brokers are restarted, and lines break for a while: records wait on the bridge's disk meanwhile.
            Rule::KafkaUnreachable => (policy.unreachable_after, Duration::ZERO),
            // The bridge tries again by itself: what it says once may be over at its next attempt.
            Rule::KafkaCertificate => (policy.service_after, Duration::ZERO),
            // The hub does: an agent may be just starting, or a broker.
            Rule::KafkaAccess => (policy.service_after, Duration::ZERO),
            // A measurement with its own hysteresis, or one that does not go back and forth.
            Rule::ServiceRestarting
            | Rule::NodeCloned
            | Rule::ClockSkew
            | Rule::SpoolLoss
            | Rule::SpoolFault
            | Rule::CertificateOverdue
            | Rule::CertificateExpiring
            | Rule::KafkaRefused
            | Rule::AuthorityEnding
            | Rule::RolloutHalted => (Duration::ZERO, Duration::ZERO),
        }
    }

    fn certificate(&mut self) {
        self.judge(Rule::CertificateOverdue, "", rules::overdue(self.view, self.policy, self.now));
        self.judge(Rule::CertificateExpiring, "", rules::certificate(self.view, self.policy, self.now));
        let overdue = rules::overdue_at(self.view, self.policy).map(|(_, at)| at);
        let expiring = self.view.certificate.map(|certificate| rules::expiring_at(certificate, self.policy));
        for alarm in [overdue, expiring].into_iter().flatten() {
            if alarm > self.now {
                self.look_again(alarm);
            }
        }
    }

    /// Whether the node itself has an alert of this rule.
    fn is_open(&self, rule: Rule) -> bool {
        let condition = self.node.conditions.get(&(rule, String::new()));
        condition.is_some_and(|condition| matches!(condition.state, State::Open { .. }))
    }

    fn nothing_but(&mut self, exempt: Rule) {
        let conditions: Vec<_> = self.node.conditions.keys().filter(|(rule, _)| *rule != exempt).cloned().collect();
        for (rule, subject) in conditions {
            self.judge(rule, &subject, Judgement::Well);
        }
    }

    fn spool_loss(&mut self) {
        let (batches, records) =
            (self.view.status.spool.as_ref().map(|spool| spool.lost_batches), rules::lost_records(self.view));
        if batches.is_none() && records.is_none() {
            return;
        }
        let now = self.now;
        batches.inspect(|count| self.node.batches.take(*count, now));
        records.iter().for_each(|lost| self.node.records.take(lost.count, now));
        let ends =
            [&self.node.batches, &self.node.records].map(|loss| loss.grown_at.map(|at| at.plus(self.policy.loss_for)));
        let [lately, of_records] = ends.map(|until| until.filter(|until| *until > now));
        for until in [lately, of_records].into_iter().flatten() {
            self.look_again(until);
        }
        let judgement =
            rules::spool_loss(batches.filter(|_| lately.is_some()), records.filter(|_| of_records.is_some()));
        self.judge(Rule::SpoolLoss, "", judgement);
    }

    fn services(&mut self) {
        let services = &self.view.services;
        if !self.view.presence.is_online() {
            // Nobody is there to tell: what is open stays open, what was pending starts anew.
            self.node.watched_since = None;
            self.node.judged = None;
            self.node.restarts.clear();
            for key in self.service_conditions() {
                self.judge(key.0, &key.1, Judgement::Unclear);
            }
            return;
        }
        let watched_since = *self.node.watched_since.get_or_insert(self.now);
        let unchanged = self.node.judged.as_ref().is_some_and(|judged| Arc::ptr_eq(judged, services));
        if unchanged && self.service_conditions().is_empty() && self.calm() {
            return;
        }
        let before = self.node.judged.replace(Arc::clone(services));
        let before: HashMap<String, Service> =
            before.iter().flat_map(|before| before.iter().filter_map(named)).collect();
        let watched = self.now.since(watched_since) >= self.policy.restart_window;
        let mut seen = HashSet::with_capacity(services.len());
        for (name, service) in services.iter().filter_map(named) {
            let restarts = self.restarts(&name, &service, before.get(&name));
            let (unhealthy, failed) = (rules::unhealthy(&service), rules::failed(&service));
            self.judge(Rule::ServiceUnhealthy, &name, unhealthy);
            self.judge(Rule::ServiceFailed, &name, failed);
            self.judge(Rule::ServiceRestarting, &name, rules::restarting(restarts, watched, self.policy));
            seen.insert(name);
        }
        self.node.restarts.retain(|name, _| seen.contains(name));
        // A service that is no longer there has nothing wrong with it.
        for (rule, subject) in self.service_conditions() {
            if !seen.contains(&subject) {
                self.judge(rule, &subject, Judgement::Well);
            }
        }
        if !watched && !self.service_conditions().is_empty() {
            self.look_again(watched_since.plus(self.policy.restart_window));
        }
    }

    /// Notes the restarts of a service since it was `before`; gives those within the window.
    fn restarts(&mut self, name: &str, service: &Service, before: Option<&Service>) -> usize {
        let (now, window) = (self.now, self.policy.restart_window);
        let known = before.map_or(service.restart_count, |before| before.restart_count);
        let recreated = before.is_some_and(|before| before.container_id != service.container_id);
        if recreated || service.restart_count < known {
            // Recreated, as a deployment does: that is not a restart, and its past is another container's.
            self.node.restarts.remove(name);
            self.node
                .conditions
                .retain(|(_, subject), condition| subject != name || matches!(condition.state, State::Open { .. }));
            return 0;
        }
        let more = (service.restart_count - known) as usize;
        if more == 0 && !self.node.restarts.contains_key(name) {
            return 0;
        }
        let restarts = self.node.restarts.entry(name.to_owned()).or_default();
        restarts.extend(std::iter::repeat_n(now, more.min(RESTARTS)));
        restarts.drain(..restarts.len().saturating_sub(RESTARTS));
        while restarts.front().is_some_and(|at| now.since(*at) >= window) {
            restarts.pop_front();
        }
        let (count, oldest) = (restarts.len(), restarts.front().copied());
        match oldest {
            Some(oldest) => self.look_again(oldest.plus(window)),
            None => drop(self.node.restarts.remove(name)),
        }
        count
    }

    /// Whether no service has restarted lately.
    fn calm(&self) -> bool {
        self.node.restarts.is_empty()
    }

    fn service_conditions(&self) -> Vec<(Rule, String)> {
        let of_services =
            |rule: Rule| matches!(rule, Rule::ServiceUnhealthy | Rule::ServiceFailed | Rule::ServiceRestarting);
        self.node.conditions.keys().filter(|(rule, _)| of_services(*rule)).cloned().collect()
    }

    fn look_again(&mut self, at: Timestamp) {
        self.node.due = Some(self.node.due.map_or(at, |due| due.min(at)));
    }

    fn finding(&self, rule: Rule, subject: &str, level: Level, message: &str) -> Finding {
        Finding {
            tenant: Some(self.view.tenant.clone()),
            node: Some(self.view.node),
            rule,
            subject: subject.to_owned(),
            level,
            message: message.to_owned(),
            at: self.now,
        }
    }
}

fn named(service: Service) -> Option<(String, Service)> {
    Some((rows::text(&service_name(service.key.as_ref()?)), service))
}

#[cfg(test)]
mod tests;
