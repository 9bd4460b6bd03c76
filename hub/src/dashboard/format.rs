//! How numbers, times and states read: one place, so that every page says the same thing the same way.

use maud::{Markup, html};
use protocol::Timestamp;

use crate::api::resource::{AttentionLevel, Node, PresenceState, Reason, Service, ServiceHealth, ServiceState, Time};

/// The hub's time while a page is rendered, and whether its text may depend on it.
///
/// A page says "12 s ago"; a live fragment carries the absolute time, so that it stays equal, and is not sent
/// again, until something happened. The page's script turns it into "12 s ago" before it is painted.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Now.
    pub now: Timestamp,
    /// Rendering a live fragment.
    pub live: bool,
}

impl Clock {
    /// A point in time, relative to now, with the exact time on hover.
    pub fn ago(self, at: Time) -> Markup {
        let exact = exact(at);
        html! {
            time datetime=(at.0) data-at=(at.0.millis()) title=(exact) {
                @if self.live { (exact) } @else { (relative(at.0, self.now)) }
            }
        }
    }
}

/// `2026-11-23 12:00:00 UTC`.
pub fn exact(at: Time) -> String {
    let text = at.0.to_string();
    match (text.get(..10), text.get(11..19)) {
        (Some(day), Some(time)) => format!("{day} {time} UTC"),
        _ => text,
    }
}

/// `12 s ago`, `in 5 d`; the same words as the page's script.
pub fn relative(at: Timestamp, now: Timestamp) -> String {
    let away = (now.millis() - at.millis()).unsigned_abs().saturating_add(500) / 1000;
    let (n, unit) = match away {
        0 => return "now".to_owned(),
        1..60 => (away, "s"),
        60..3_600 => (away / 60, "min"),
        3_600..172_800 => (away / 3_600, "h"),
        _ => (away / 86_400, "d"),
    };
    if at <= now { format!("{n} {unit} ago") } else { format!("in {n} {unit}") }
}

/// `3 d 4 h`, `12 min`.
pub fn duration(seconds: f64) -> String {
    let s = seconds.max(0.0) as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3_600 => format!("{} min", s / 60),
        3_600..86_400 => format!("{} h {} min", s / 3_600, s / 60 % 60),
        _ => format!("{} d {} h", s / 86_400, s / 3_600 % 24),
    }
}

/// `7.6 GiB`.
pub fn bytes(value: f64) -> String {
    scaled(value, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"])
}

/// `1.2 MB/s`.
pub fn rate(value: f64) -> String {
    scaled(value, 1000.0, &["B/s", "kB/s", "MB/s", "GB/s", "TB/s"])
}

/// `12 %`; one decimal under ten.
pub fn percent(ratio: f64) -> String {
    let value = ratio * 100.0;
    if value > 0.0 && value < 9.95 { format!("{value:.1} %") } else { format!("{value:.0} %") }
}

fn scaled(mut value: f64, step: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value.abs() >= step && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    let decimals = usize::from(unit > 0 && value.abs() < 99.95);
    format!("{value:.decimals$} {}", units.get(unit).copied().unwrap_or_default())
}

/// `1 node`, `1,240 nodes`.
pub fn count(n: usize, one: &str, many: &str) -> String {
    format!("{} {}", thousands(n as u64), if n == 1 { one } else { many })
}

/// `1,240`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A state: its colour, its shape and its word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// CSS class: `ok`, `notice`, `warning`, `critical`, `away`.
    pub class: &'static str,
    /// The word.
    pub word: &'static str,
}

impl Standing {
    /// Shape and word.
    pub fn show(self) -> Markup {
        html! { span class={ "state " (self.class) } { (mark(self.class)) (self.word) } }
    }
}

/// The shape that goes with a state's colour: disc, ring, diamond, triangle, or an open square.
pub fn mark(class: &str) -> Markup {
    html! {
        @match class {
            "ok" => svg.mark viewBox="0 0 10 10" aria-hidden="true" { circle cx="5" cy="5" r="4.5" {} },
            "notice" => svg.mark.hollow viewBox="0 0 10 10" aria-hidden="true" { circle cx="5" cy="5" r="4" {} },
            "warning" => svg.mark viewBox="0 0 10 10" aria-hidden="true" { path d="M5 -.4 10.4 5 5 10.4 -.4 5Z" {} },
            "critical" => svg.mark viewBox="0 0 10 10" aria-hidden="true" { path d="M5 .2 10.4 9.6H-.4Z" {} },
            _ => svg.mark.hollow viewBox="0 0 10 10" aria-hidden="true" { rect x="1" y="1" width="8" height="8" rx="1" {} },
        }
    }
}

/// The state of an attention level alone.
pub fn level(level: AttentionLevel) -> Standing {
    match level {
        AttentionLevel::Ok => Standing { class: "ok", word: "OK" },
        AttentionLevel::Notice => Standing { class: "notice", word: "Notice" },
        AttentionLevel::Warning => Standing { class: "warning", word: "Warning" },
        AttentionLevel::Critical => Standing { class: "critical", word: "Critical" },
    }
}

/// A node's state in one word: presence where that is the news, else what it needs.
pub fn node(node: &Node) -> Standing {
    if node.revoked_at.is_some() {
        return Standing { class: "away", word: "Revoked" };
    }
    match (node.presence.state, node.attention.level) {
        (PresenceState::Lost, _) => Standing { class: "critical", word: "Lost" },
        (PresenceState::Left, _) => Standing { class: "away", word: "Signed off" },
        (PresenceState::NeverSeen, _) => Standing { class: "away", word: "Never seen" },
        (PresenceState::Online, AttentionLevel::Ok) => Standing { class: "ok", word: "Online" },
        (PresenceState::Online, worse) => level(worse),
    }
}

/// A service's state in one word.
pub fn service(service: &Service) -> Standing {
    let word = match (service.state, service.health) {
        (ServiceState::Running, ServiceHealth::Unhealthy) => "Unhealthy",
        (ServiceState::Running, ServiceHealth::Starting) => "Starting",
        (ServiceState::Running, ServiceHealth::Healthy) => "Healthy",
        (ServiceState::Running, ServiceHealth::None) => "Running",
        (ServiceState::Restarting, _) => "Restarting",
        (ServiceState::Exited, _) => "Exited",
        (ServiceState::Created, _) => "Created",
        (ServiceState::Paused, _) => "Paused",
        (ServiceState::Removing, _) => "Removing",
        (ServiceState::Dead, _) => "Dead",
        (ServiceState::Unknown, _) => "Unknown",
    };
    let class = match (service.attention, service.state) {
        (AttentionLevel::Ok, ServiceState::Running) => "ok",
        (AttentionLevel::Ok, _) => "away",
        (other, _) => level(other).class,
    };
    Standing { class, word }
}

/// `demo/web/1: its health check fails`; `The clock is …` where it is about the node itself.
pub fn sentence(subject: &str, message: &str) -> String {
    if !subject.is_empty() {
        return format!("{subject}: {message}");
    }
    capital(message)
}

/// The same sentence with a capital letter.
pub fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

/// Why a node needs attention, worst first, in one line.
pub fn because(reasons: &[Reason]) -> String {
    let (first, rest) = match reasons {
        [] => return String::new(),
        [first, rest @ ..] => (first, rest.len()),
    };
    let more = if rest > 0 { format!(" And {} more.", thousands(rest as u64)) } else { String::new() };
    format!("{}.{more}", sentence(&first.subject, &first.message).trim_end_matches('.'))
}

/// A percentage with a bar, coloured when it is high.
pub fn meter(ratio: Option<f64>, warn: f64, crit: f64) -> Markup {
    html! {
        @match ratio {
            Some(ratio) => span class={ "meter" @if ratio >= crit { " critical" } @else if ratio >= warn { " warning" } } {
                svg aria-hidden="true" { rect height="100%" width={ (format!("{:.0}%", ratio.clamp(0.0, 1.0) * 100.0)) } {} }
                span { (format!("{:.0} %", ratio * 100.0)) }
            },
            None => span.quiet { "–" },
        }
    }
}

/// Text as it may stand in a URL's query.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_the_way_people_say_them() {
        assert_eq!(bytes(0.0), "0 B");
        assert_eq!(bytes(1023.0), "1023 B");
        assert_eq!(bytes(8_160_437_862.0), "7.6 GiB");
        assert_eq!(rate(1_234_567.0), "1.2 MB/s");
        assert_eq!(rate(999.0), "999 B/s");
        assert_eq!(percent(0.031), "3.1 %");
        assert_eq!(percent(0.12), "12 %");
        assert_eq!(percent(0.0), "0 %");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(thousands(999), "999");
        assert_eq!(count(1, "node", "nodes"), "1 node");
        assert_eq!(duration(277_200.0), "3 d 5 h");
    }

    #[test]
    fn times_are_relative_in_both_directions() {
        let now = Timestamp::from_millis(1_000_000_000);
        let at = |seconds: i64| Timestamp::from_millis(1_000_000_000 + seconds * 1000);
        assert_eq!(relative(at(-12), now), "12 s ago");
        assert_eq!(relative(at(-3_599), now), "59 min ago");
        assert_eq!(relative(at(5 * 86_400), now), "in 5 d");
        assert_eq!(relative(at(0), now), "now");
        assert_eq!(relative(Timestamp::from_millis(i64::MAX / 2), now).split(' ').next(), Some("in"));
    }

    #[test]
    fn a_live_fragment_does_not_change_as_time_passes() {
        let at = Time(Timestamp::from_millis(0));
        let text = |now, live| Clock { now: Timestamp::from_millis(now), live }.ago(at).into_string();
        assert_eq!(text(5_000, true), text(65_000, true));
        assert_ne!(text(5_000, false), text(65_000, false));
    }

    #[test]
    fn queries_are_escaped() {
        assert_eq!(escaped("a b&c=ä"), "a%20b%26c%3D%C3%A4");
    }
}
