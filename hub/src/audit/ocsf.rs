//! An entry as an event of the Open Cybersecurity Schema Framework (OCSF 1.6), and back.
//!
//! Everything of the event follows from the entry, which stands under `unmapped` as it was hashed: so whoever has the
//! lines has the chain, and an event that says something else than its entry is found.

use serde_json::{Map, Value, json};

use super::chain::Link;
use super::{Timestamp, action};

/// The schema's version.
const SCHEMA: &str = "1.6.0";
/// Version of this mapping.
const MAPPING: &str = "1";
/// This hub's version, where the events say who wrote them.
const PRODUCT: &str = env!("CARGO_PKG_VERSION");

// Class ids; the first digit is the category's.
const ACCOUNT_CHANGE: u32 = 3001;
const AUTHENTICATION: u32 = 3002;
const ENTITY_MANAGEMENT: u32 = 3004;
const API_ACTIVITY: u32 = 6003;

const SUCCESS: u32 = 1;
const FAILURE: u32 = 2;
const INFORMATIONAL: u32 = 1;
const MEDIUM: u32 = 3;
const OTHER: u32 = 99;

/// The event of an entry.
pub fn event(link: &Link) -> Value {
    event_by(link, PRODUCT)
}

/// A line of an export that is not an entry's event.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// Not JSON, or not an event with an entry under `unmapped`.
    #[error("it is not an event of this audit log")]
    Malformed(#[source] serde_json::Error),
    /// The entry is there, and the event around it says something else.
    #[error("what it says is not what its entry under `unmapped` says")]
    Differs(Box<Link>),
}

/// The entry of an event.
///
/// # Errors
/// [`EventError::Differs`] holds the entry, [`EventError::Malformed`] has none.
pub fn entry(line: &str) -> Result<Link, EventError> {
    let line = line.trim();
    let event: Value = serde_json::from_str(line).map_err(EventError::Malformed)?;
    let link: Link = serde_json::from_value(event["unmapped"].clone()).map_err(EventError::Malformed)?;
    let product = event.pointer("/metadata/product/version").and_then(Value::as_str).unwrap_or_default();
    let expected = event_by(&link, product);
    // The length as well: of a field that stands there twice, some readers take the other one.
    if event != expected || line.len() != expected.to_string().len() {
        return Err(EventError::Differs(Box::new(link)));
    }
    Ok(link)
}

fn event_by(link: &Link, product: &str) -> Value {
    let detail: Value = serde_json::from_str(&link.detail).unwrap_or(Value::Null);
    let refused = link.action.ends_with("refused");
    let (class, activity) = classify(link);
    let mut event = json!({
        "class_uid": class,
        "category_uid": class / 1000,
        "activity_id": activity,
        "type_uid": class * 100 + activity,
        "time": link.at,
        "severity_id": if refused || link.action == action::SESSION_DISPLACED { MEDIUM } else { INFORMATIONAL },
        "status_id": if refused { FAILURE } else { SUCCESS },
        "message": format!("{}: {} by {}", link.action, link.subject, link.actor),
        "actor": { "user": user(link) },
        "metadata": {
            "version": SCHEMA,
            "product": { "name": "Hyperfactory hub", "vendor_name": "Hyperfactory", "version": product },
            "uid": link.hash.to_string(),
            "sequence": link.id,
            "event_code": link.action,
            "log_name": "audit",
            "log_version": MAPPING,
            "original_time": Timestamp::from_millis(link.at).to_string(),
        },
        "unmapped": link,
    });
    let Some(fields) = event.as_object_mut() else { return event };
    if let Some(reason) = detail["reason"].as_str() {
        fields.insert("status_detail".into(), reason.into());
    }
    if let Some(tenant) = &link.tenant {
        fields["metadata"]["tenant_uid"] = tenant.as_str().into();
    }
    if let Some(remote) = &link.remote {
        fields.insert("src_endpoint".into(), json!({ "ip": remote }));
    }
    match class {
        ACCOUNT_CHANGE => {
            let account = json!({ "uid": link.subject, "name": detail["name"], "type": "API token", "type_id": OTHER });
            fields.insert("user".into(), without_null(account));
        }
        AUTHENTICATION => {
            fields.insert("user".into(), user(link));
            fields.insert("service".into(), json!({ "name": "hyperfactory-hub" }));
            fields.insert("is_remote".into(), true.into());
        }
        API_ACTIVITY => {
            fields.insert("api".into(), json!({ "operation": link.subject }));
            // Required by the class; every caller has an address.
            fields.entry("src_endpoint").or_insert_with(|| json!({ "name": "unknown" }));
        }
        _ => {
            let kind = link.action.split('.').next().unwrap_or_default();
            let name = detail["name"].as_str().unwrap_or(&link.subject);
            let entity = json!({ "type": kind, "uid": link.subject, "name": name, "data": detail });
            fields.insert("entity".into(), without_null(entity));
        }
    }
    event
}

/// Class and activity of an action; one that is not known yet is told by its last word.
fn classify(link: &Link) -> (u32, u32) {
    let (subject, verb) = link.action.split_once('.').unwrap_or((&link.action, ""));
    match (subject, verb) {
        ("signin", _) | ("session", "refused") => (AUTHENTICATION, 1),
        ("signout", _) | ("session", "displaced") => (AUTHENTICATION, 2),
        ("access", _) => {
            let method = link.subject.split(' ').next().unwrap_or_default();
            (
                API_ACTIVITY,
                match method {
                    "POST" => 1,
                    "GET" | "HEAD" => 2,
                    "PUT" | "PATCH" => 3,
                    "DELETE" => 4,
                    _ => OTHER,
                },
            )
        }
        ("api_token", "created") => (ACCOUNT_CHANGE, 1),
        ("api_token", "revoked") => (ACCOUNT_CHANGE, 6),
        ("api_token", _) => (ACCOUNT_CHANGE, OTHER),
        (_, "created" | "certified") => (ENTITY_MANAGEMENT, 1),
        (_, "changed" | "renewed") | ("renewal", _) => (ENTITY_MANAGEMENT, 3),
        (_, "removed" | "deleted") => (ENTITY_MANAGEMENT, 4),
        (_, "enrolled") | ("enrollment", _) => (ENTITY_MANAGEMENT, 6),
        (_, "revoked") => (ENTITY_MANAGEMENT, 9),
        (_, "retired") => (ENTITY_MANAGEMENT, 11),
        _ => (ENTITY_MANAGEMENT, OTHER),
    }
}

fn user(link: &Link) -> Value {
    let user = match link.actor.split_once(':') {
        Some(("operator", name)) => json!({ "name": name, "type_id": 1, "credential_uid": link.credential }),
        Some(("node", id)) => json!({ "name": link.actor, "uid": id, "type": "Node", "type_id": OTHER }),
        _ if link.actor == "system" => json!({ "name": link.actor, "type_id": 3 }),
        _ => json!({ "name": link.actor, "type_id": 0 }),
    };
    without_null(user)
}

fn without_null(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            Value::Object(fields.into_iter().filter(|(_, value)| !value.is_null()).collect::<Map<_, _>>())
        }
        other => other,
    }
}
