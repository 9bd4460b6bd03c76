//! The fleet as operators see it: the plain values that the API serves and the dashboard shows.

mod alert;
mod api_token;
mod audit;
mod bridge;
mod command;
mod coverage;
mod figures;
mod history;
mod join_token;
mod log;
mod node;
mod rollout;
mod service;
mod tenant;
mod view;

use protocol::Timestamp;
use serde::{Serialize, Serializer};
use utoipa::openapi::{ObjectBuilder, RefOr, Schema, schema::SchemaFormat, schema::Type};
use utoipa::{PartialSchema, ToSchema};

pub use alert::Alert;
pub use api_token::{ApiToken, NewApiToken, Role};
pub use audit::{AuditEntry, AuditHead};
pub use bridge::{Bridge, KafkaAccess, KafkaAccessState, KafkaState, MqttConnection, Route, TopicClass};
pub use command::{Command, CommandDetail, CommandState, Ordered, OrderedCommand};
pub use coverage::{Coverage, LostRange};
pub use figures::{Disk, Figures, Used};
pub use history::{History, Point, Series};
pub use join_token::{NewToken, Token, TokenState};
pub use log::KeptLine;
pub use node::{
    Attention, AttentionLevel, Certificate, Clock, ClockState, Engine, EngineState, Host, Kind, Node, NodeDetail,
    Presence, PresenceState, Reason, Spool,
};
pub use rollout::{Rollout, RolloutNode, RolloutPreview, RolloutState, Wave, WaveCounts, WavePreview, WaveState};
pub use service::{Service, ServiceCounts, ServiceHealth, ServiceState};
pub use tenant::{NodeCounts, Tenant};

/// A point in time; RFC 3339 in UTC with milliseconds on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub Timestamp);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl PartialSchema for Time {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::Custom("date-time".into())))
            .description(Some("RFC 3339, UTC"))
            .into()
    }
}

impl ToSchema for Time {
    fn name() -> std::borrow::Cow<'static, str> {
        "Time".into()
    }
}

impl From<Timestamp> for Time {
    fn from(at: Timestamp) -> Self {
        Self(at)
    }
}

/// One page of a list.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Page<T: ToSchema> {
    /// The items, in the list's order.
    pub items: Vec<T>,
    /// Pass as `cursor` for the page after this one; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}
