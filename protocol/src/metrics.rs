//! The metrics a node reports: names, units and scales that agent, hub and simulator agree on.

use crate::telemetry::{Kind, Metric, Unit};

/// A metric known at compile time; [`Metric`] is made from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Name, as in a schema.
    pub name: &'static str,
    /// What the real value counts.
    pub unit: Unit,
    /// A level, or a total that only grows.
    pub kind: Kind,
    /// Decimal places of the integers.
    pub decimals: u8,
}

impl From<Known> for Metric {
    fn from(known: Known) -> Self {
        Self { name: known.name.into(), unit: known.unit, kind: known.kind, decimals: known.decimals }
    }
}

macro_rules! known {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $unit:ident, $kind:ident, $decimals:literal;)*) => {
        $($(#[$doc])* pub const $name: Known =
            Known { name: $text, unit: Unit::$unit, kind: Kind::$kind, decimals: $decimals };)*
        /// Every metric of this version, in the order in which a node declares them.
        pub const ALL: &[Known] = &[$($name),*];
    };
}

known! {
    /// Share of all processors' time that was not idle since the row before.
    CPU_BUSY = "cpu.busy", Ratio, Gauge, 4;
    /// The same of one processor; target `cpu0`, `cpu1`, ….
    CPU_CORE_BUSY = "cpu.core.busy", Ratio, Gauge, 4;
    /// Load average over a minute.
    LOAD_1 = "load.1", Count, Gauge, 2;
    /// Load average over 5 minutes.
    LOAD_5 = "load.5", Count, Gauge, 2;
    /// Load average over 15 minutes.
    LOAD_15 = "load.15", Count, Gauge, 2;
    /// Memory there is.
    MEMORY_TOTAL = "memory.total", Kibibytes, Gauge, 0;
    /// Memory that programs could not have.
    MEMORY_USED = "memory.used", Kibibytes, Gauge, 0;
    /// Memory that programs could have without swapping.
    MEMORY_AVAILABLE = "memory.available", Kibibytes, Gauge, 0;
    /// Swap there is.
    SWAP_TOTAL = "swap.total", Kibibytes, Gauge, 0;
    /// Swap in use.
    SWAP_USED = "swap.used", Kibibytes, Gauge, 0;
    /// Size of a file system; target: its mount point.
    DISK_TOTAL = "disk.total", Kibibytes, Gauge, 0;
    /// Used of a file system; target: its mount point.
    DISK_USED = "disk.used", Kibibytes, Gauge, 0;
    /// Read from a block device; target: the device.
    DISK_READ = "disk.read", Bytes, Counter, 0;
    /// Written to a block device; target: the device.
    DISK_WRITTEN = "disk.written", Bytes, Counter, 0;
    /// Received on an interface; target: the interface.
    NETWORK_RECEIVED = "network.received", Bytes, Counter, 0;
    /// Sent on an interface; target: the interface.
    NETWORK_SENT = "network.sent", Bytes, Counter, 0;
    /// Errors of either direction on an interface; target: the interface.
    NETWORK_ERRORS = "network.errors", Count, Counter, 0;
    /// Time since the host started.
    UPTIME = "uptime", Seconds, Counter, 0;
    /// Processor time of a service. Targets of `service.*`: `stack/service/number`.
    SERVICE_CPU = "service.cpu", Milliseconds, Counter, 0;
    /// Memory of a service, without the page cache that could be dropped.
    SERVICE_MEMORY = "service.memory", Kibibytes, Gauge, 0;
    /// The most memory a service may take.
    SERVICE_MEMORY_LIMIT = "service.memory.limit", Kibibytes, Gauge, 0;
    /// Processes and threads of a service.
    SERVICE_PROCESSES = "service.processes", Count, Gauge, 0;
    /// Received by a service.
    SERVICE_NETWORK_RECEIVED = "service.network.received", Bytes, Counter, 0;
    /// Sent by a service.
    SERVICE_NETWORK_SENT = "service.network.sent", Bytes, Counter, 0;
    /// Read from block devices by a service.
    SERVICE_BLOCK_READ = "service.block.read", Bytes, Counter, 0;
    /// Written to block devices by a service.
    SERVICE_BLOCK_WRITTEN = "service.block.written", Bytes, Counter, 0;
    /// Resident memory of the node's own program.
    AGENT_MEMORY = "agent.memory", Kibibytes, Gauge, 0;
    /// Processor time of the node's own program.
    AGENT_CPU = "agent.cpu", Milliseconds, Counter, 0;
    /// Batches in the spool that the hub has not acknowledged.
    SPOOL_PENDING = "spool.pending", Count, Gauge, 0;
    /// Bytes of the spool on disk.
    SPOOL_BYTES = "spool.bytes", Bytes, Gauge, 0;
    /// Messages a bridge received from MQTT.
    BRIDGE_RECEIVED = "bridge.received", Count, Counter, 0;
    /// Messages that the steps of a bridge's routes let go no further.
    BRIDGE_FILTERED = "bridge.filtered", Count, Counter, 0;
    /// Messages that a bridge passes on as they came although their route declares what to do with them.
    BRIDGE_UNMAPPED = "bridge.unmapped", Count, Counter, 0;
    /// Sparkplug messages of a bridge by which a host application would ask for a birth.
    BRIDGE_BIRTHS_WANTED = "bridge.births.wanted", Count, Counter, 0;
    /// Records of a bridge that Kafka confirmed.
    BRIDGE_DELIVERED = "bridge.delivered", Count, Counter, 0;
    /// Records of a bridge that became dead letters.
    BRIDGE_REFUSED = "bridge.refused", Count, Counter, 0;
    /// Records that a bridge dropped because their class's room was used up, or they were too old.
    BRIDGE_DROPPED = "bridge.dropped", Count, Counter, 0;
    /// Records on a bridge's disk that Kafka has not confirmed.
    BRIDGE_PENDING = "bridge.pending", Count, Gauge, 0;
    /// Bytes of the log that holds them.
    BRIDGE_BYTES = "bridge.bytes", Bytes, Gauge, 0;
    /// How long ago a bridge received the oldest record that Kafka has not confirmed; 0 when there is none.
    BRIDGE_LAG = "bridge.lag", Milliseconds, Gauge, 0;
    /// Connections to MQTT brokers that are up.
    BRIDGE_CONNECTED = "bridge.connected", Count, Gauge, 0;
}

/// The metric of this name, when this version knows it.
pub fn find(name: &str) -> Option<Known> {
    ALL.iter().copied().find(|known| known.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_found_by_its_name_and_by_no_other() {
        for known in ALL {
            assert_eq!(find(known.name), Some(*known));
        }
        assert_eq!(find("cpu"), None);
    }
}
