//! Which nodes a list shows, in which order, and where a page of it ends.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::sync::Arc;

use data_encoding::BASE64URL_NOPAD;
use protocol::NodeId;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::problem::Problem;
use super::resource::{AttentionLevel, Kind, Node, PresenceState};
use crate::access::Principal;
use crate::labels::{self, Label};
use crate::web::App;

/// Filter and order of a list of nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct NodeQuery {
    /// Only this tenant's.
    #[serde(deserialize_with = "filled")]
    pub tenant: Option<String>,
    /// Only those in this state.
    #[serde(deserialize_with = "filled")]
    pub state: Option<StateFilter>,
    /// Only this kind.
    #[serde(deserialize_with = "filled")]
    pub kind: Option<Kind>,
    /// Only those whose name, host name, tenant or id holds this text.
    #[serde(deserialize_with = "filled")]
    pub q: Option<String>,
    /// Only those with this label, as in `ring=canary`; of several, with a comma between them, those with all.
    #[serde(deserialize_with = "filled")]
    pub label: Option<String>,
    /// Order; the default is what needs attention first.
    #[serde(deserialize_with = "filled")]
    pub sort: Option<Sort>,
}

/// An empty form field is no filter.
fn filled<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    match text.as_deref().map(str::trim) {
        None | Some("") => Ok(None),
        Some(text) => T::deserialize(serde::de::value::StrDeserializer::new(text)).map(Some),
    }
}

/// A state to filter by: of presence, or of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StateFilter {
    /// With a live session.
    Online,
    /// Without one, after it broke off.
    Lost,
    /// Without one, after saying goodbye.
    Left,
    /// Enrolled, never connected.
    NeverSeen,
    /// Anything but attention `ok`.
    Attention,
    /// Attention critical.
    Critical,
    /// Attention warning.
    Warning,
    /// Attention notice.
    Notice,
    /// Attention ok.
    Ok,
}

impl StateFilter {
    /// As it stands in a query.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Lost => "lost",
            Self::Left => "left",
            Self::NeverSeen => "never_seen",
            Self::Attention => "attention",
            Self::Critical => "critical",
            Self::Warning => "warning",
            Self::Notice => "notice",
            Self::Ok => "ok",
        }
    }

    fn holds(self, node: &Node) -> bool {
        match self {
            Self::Online => node.presence.state == PresenceState::Online,
            Self::Lost => node.presence.state == PresenceState::Lost,
            Self::Left => node.presence.state == PresenceState::Left,
            Self::NeverSeen => node.presence.state == PresenceState::NeverSeen,
            Self::Attention => node.attention.level > AttentionLevel::Ok,
            Self::Critical => node.attention.level == AttentionLevel::Critical,
            Self::Warning => node.attention.level == AttentionLevel::Warning,
            Self::Notice => node.attention.level == AttentionLevel::Notice,
            Self::Ok => node.attention.level == AttentionLevel::Ok,
        }
    }
}

/// An order. Figures sort greatest first and names from A; a leading `-` turns it round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sort {
    /// What needs somebody first.
    Attention,
    /// The other way round.
    #[serde(rename = "-attention")]
    AttentionReversed,
    /// By name.
    Name,
    /// By name, from Z.
    #[serde(rename = "-name")]
    NameReversed,
    /// By tenant, then name.
    Tenant,
    /// By tenant, from Z.
    #[serde(rename = "-tenant")]
    TenantReversed,
    /// Busiest first.
    Cpu,
    /// Idlest first.
    #[serde(rename = "-cpu")]
    CpuReversed,
    /// Least memory left first.
    Memory,
    /// Most memory left first.
    #[serde(rename = "-memory")]
    MemoryReversed,
    /// Fullest disk first.
    Disk,
    /// Emptiest disk first.
    #[serde(rename = "-disk")]
    DiskReversed,
    /// Last heard from first.
    Seen,
    /// Longest silent first.
    #[serde(rename = "-seen")]
    SeenReversed,
}

impl Sort {
    /// As it stands in a query.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::AttentionReversed => "-attention",
            Self::Name => "name",
            Self::NameReversed => "-name",
            Self::Tenant => "tenant",
            Self::TenantReversed => "-tenant",
            Self::Cpu => "cpu",
            Self::CpuReversed => "-cpu",
            Self::Memory => "memory",
            Self::MemoryReversed => "-memory",
            Self::Disk => "disk",
            Self::DiskReversed => "-disk",
            Self::Seen => "seen",
            Self::SeenReversed => "-seen",
        }
    }

    /// The order without its direction.
    pub fn forward(self) -> Self {
        match self {
            Self::AttentionReversed => Self::Attention,
            Self::NameReversed => Self::Name,
            Self::TenantReversed => Self::Tenant,
            Self::CpuReversed => Self::Cpu,
            Self::MemoryReversed => Self::Memory,
            Self::DiskReversed => Self::Disk,
            Self::SeenReversed => Self::Seen,
            forward => forward,
        }
    }

    /// The same order the other way round.
    pub fn turned(self) -> Self {
        match self {
            Self::Attention => Self::AttentionReversed,
            Self::Name => Self::NameReversed,
            Self::Tenant => Self::TenantReversed,
            Self::Cpu => Self::CpuReversed,
            Self::Memory => Self::MemoryReversed,
            Self::Disk => Self::DiskReversed,
            Self::Seen => Self::SeenReversed,
            reversed => reversed.forward(),
        }
    }

    /// Whether greater values come first.
    pub fn descends(self) -> bool {
        let natural = !matches!(self.forward(), Self::Name | Self::Tenant);
        natural == (self == self.forward())
    }

    /// A text whose order is the order of the list, before turning round.
    fn key(self, node: &Node) -> String {
        // Whole thousandths, subtracted from a ceiling, so that the greatest comes first as text.
        let falling = |value: Option<f64>| {
            let thousandths = value.map_or(0, |value| (value.max(0.0) * 1000.0) as u64 + 1);
            format!("{:020}", u64::MAX / 2 - thousandths.min(u64::MAX / 2))
        };
        let name = node.name.to_lowercase();
        match self.forward() {
            Self::Name => name,
            Self::Tenant => format!("{}\u{0}{name}", node.tenant),
            Self::Cpu => falling(node.figures.cpu),
            Self::Memory => falling(node.figures.memory.map(|used| used.ratio())),
            Self::Disk => falling(node.figures.disks.first().map(|disk| disk.space.ratio())),
            Self::Seen => falling(node.last_seen.map(|at| at.0.millis() as f64 / 1000.0)),
            _ => {
                let level = match node.attention.level {
                    AttentionLevel::Critical => 0,
                    AttentionLevel::Warning => 1,
                    AttentionLevel::Notice => 2,
                    AttentionLevel::Ok => 3,
                };
                format!("{level}{name}")
            }
        }
    }
}

/// The nodes that have the labels of a filter, where it asks for any.
pub(crate) struct Labelled(Option<HashSet<NodeId>>);

impl Labelled {
    /// No node at all.
    pub(crate) fn none() -> Self {
        Self(Some(HashSet::new()))
    }

    pub(crate) fn holds(&self, node: &Node) -> bool {
        self.0.as_ref().is_none_or(|nodes| node.id.parse().is_ok_and(|id| nodes.contains(&id)))
    }
}

/// A list of nodes, filtered and in order.
#[derive(Debug)]
pub struct Selected {
    sort: Sort,
    rows: Vec<(String, Arc<Node>)>,
}

impl NodeQuery {
    /// The order that applies.
    pub fn order(&self) -> Sort {
        self.sort.unwrap_or(Sort::Attention)
    }

    /// Who has the labels of the filter, of those whom somebody sees.
    pub(crate) async fn labelled(&self, app: &App, who: &Principal) -> Result<Labelled, Problem> {
        let Some(text) = &self.label else { return Ok(Labelled(None)) };
        let wanted = text.split(',').map(|label| label.trim().parse::<Label>()).collect::<Result<Vec<_>, _>>()?;
        Ok(Labelled(Some(labels::nodes(&app.state.database, who.tenant.as_ref(), &wanted).await?)))
    }

    /// Whether a node passes the filter, but for its labels, which stand in the database.
    pub fn holds(&self, node: &Node) -> bool {
        self.tenant.as_ref().is_none_or(|tenant| *tenant == node.tenant)
            && self.state.is_none_or(|state| state.holds(node))
            && self.kind.is_none_or(|kind| kind == node.kind)
            && self.q.as_ref().is_none_or(|q| mentions(node, q))
    }

    /// Filters, but for the labels, and sorts.
    pub fn select<'a>(&self, nodes: impl IntoIterator<Item = &'a Arc<Node>>) -> Selected {
        let sort = self.order();
        let mut rows: Vec<(String, Arc<Node>)> =
            nodes.into_iter().filter(|node| self.holds(node)).map(|node| (sort.key(node), Arc::clone(node))).collect();
        rows.sort_unstable_by(|a, b| compare(sort, (&a.0, &a.1.id), (&b.0, &b.1.id)));
        Selected { sort, rows }
    }
}

impl Selected {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// At most `limit` nodes after `cursor`, and the cursor of the page after them.
    pub fn page(&self, cursor: Option<&Cursor>, limit: usize) -> (Vec<Arc<Node>>, Option<Cursor>) {
        let start = cursor.map_or(0, |after| {
            self.rows.partition_point(|row| {
                compare(self.sort, (&row.0, &row.1.id), (&after.key, &after.id)) != Ordering::Greater
            })
        });
        let rest = self.rows.get(start..).unwrap_or_default();
        let page = rest.get(..limit.min(rest.len())).unwrap_or_default();
        let next = (rest.len() > page.len())
            .then(|| page.last().map(|(key, node)| Cursor { key: key.clone(), id: node.id.clone() }))
            .flatten();
        (page.iter().map(|(_, node)| Arc::clone(node)).collect(), next)
    }
}

fn compare(sort: Sort, a: (&String, &String), b: (&String, &String)) -> Ordering {
    let order = a.0.cmp(b.0);
    let order = if sort == sort.forward() { order } else { order.reverse() };
    order.then_with(|| a.1.cmp(b.1))
}

fn mentions(node: &Node, text: &str) -> bool {
    let text = text.to_lowercase();
    [&node.name, &node.host.hostname, &node.tenant, &node.id].iter().any(|field| field.to_lowercase().contains(&text))
}

/// Where a page ended: the last item's place in the order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The sort key.
    pub key: String,
    /// The id, which settles ties.
    pub id: String,
}

impl Cursor {
    /// The opaque text of the API.
    pub fn encode(&self) -> String {
        BASE64URL_NOPAD.encode(format!("{}\u{1}{}", self.id, self.key).as_bytes())
    }

    /// Reads it back; `None` when this hub did not make it.
    pub fn decode(text: &str) -> Option<Self> {
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (id, key) = text.split_once('\u{1}')?;
        Some(Self { key: key.to_owned(), id: id.to_owned() })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::api::resource::{Attention, Figures, Host, Presence, ServiceCounts, Time, Used};
    use protocol::Timestamp;

    pub(crate) fn node(id: &str, name: &str, tenant: &str, level: AttentionLevel, cpu: f64) -> Arc<Node> {
        Arc::new(Node {
            id: id.into(),
            tenant: tenant.into(),
            kind: Kind::Agent,
            name: name.into(),
            presence: Presence { state: PresenceState::Online, since: None, remote: None, reason: None },
            attention: Attention { level, reasons: vec![] },
            last_seen: None,
            enrolled_at: Time(Timestamp::from_millis(0)),
            revoked_at: None,
            host: Host { hostname: format!("{name}.example"), ..Host::default() },
            figures: Figures { cpu: Some(cpu), memory: Some(Used { used: cpu, total: 1.0 }), ..Figures::default() },
            service_counts: ServiceCounts::default(),
            bridge: None,
            kafka_access: None,
        })
    }

    fn fleet() -> Vec<Arc<Node>> {
        vec![
            node("1", "press", "acme", AttentionLevel::Ok, 0.9),
            node("2", "Oven", "acme", AttentionLevel::Critical, 0.1),
            node("3", "mill", "zeta", AttentionLevel::Warning, 0.5),
            node("4", "mill", "acme", AttentionLevel::Ok, 0.5),
        ]
    }

    fn ids(query: &NodeQuery) -> String {
        query.select(&fleet()).page(None, 10).0.iter().map(|node| node.id.as_str()).collect()
    }

    #[test]
    fn what_needs_attention_comes_first() {
        assert_eq!(ids(&NodeQuery::default()), "2341");
        assert_eq!(ids(&NodeQuery { sort: Some(Sort::AttentionReversed), ..NodeQuery::default() }), "1432");
    }

    #[test]
    fn figures_fall_and_names_rise() {
        assert_eq!(ids(&NodeQuery { sort: Some(Sort::Cpu), ..NodeQuery::default() }), "1342");
        assert_eq!(ids(&NodeQuery { sort: Some(Sort::CpuReversed), ..NodeQuery::default() }), "2341");
        assert_eq!(ids(&NodeQuery { sort: Some(Sort::Name), ..NodeQuery::default() }), "3421");
        assert!(Sort::Cpu.descends() && !Sort::CpuReversed.descends() && !Sort::Name.descends());
    }

    #[test]
    fn filters_combine() {
        let query = NodeQuery { q: Some("MILL".into()), tenant: Some("acme".into()), ..NodeQuery::default() };
        assert_eq!(ids(&query), "4");
        assert_eq!(ids(&NodeQuery { state: Some(StateFilter::Attention), ..NodeQuery::default() }), "23");
    }

    #[test]
    fn pages_meet_without_a_gap_or_a_double_in_every_order() {
        for sort in
            [Sort::Attention, Sort::Name, Sort::NameReversed, Sort::Cpu, Sort::CpuReversed, Sort::Tenant, Sort::Seen]
        {
            let query = NodeQuery { sort: Some(sort), ..NodeQuery::default() };
            let selected = query.select(&fleet());
            let (mut seen, mut cursor) = (String::new(), None);
            loop {
                let (page, next) = selected.page(cursor.as_ref(), 1);
                page.iter().for_each(|node| seen.push_str(&node.id));
                let Some(next) = next else { break };
                cursor = Cursor::decode(&next.encode());
                assert!(cursor.is_some());
            }
            assert_eq!(seen, ids(&query), "{sort:?}");
        }
    }

    #[test]
    fn an_empty_field_is_no_filter_and_a_wrong_one_is_an_error() {
        let read = |text: &str| {
            axum::extract::Query::<NodeQuery>::try_from_uri(&format!("/?{text}").parse().expect("a URI"))
                .map(|query| query.0)
        };
        assert_eq!(read("q=&state=&sort=").expect("good"), NodeQuery::default());
        assert_eq!(read("sort=-cpu").expect("good").sort, Some(Sort::CpuReversed));
        assert!(read("state=broken").is_err());
    }
}
