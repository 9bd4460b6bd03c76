//! QUIC settings of hub and node, each with what it costs or saves. A connection at the hub takes about 32 KB.

use std::sync::Arc;
use std::time::Duration;

use quinn::{IdleTimeout, TransportConfig, VarInt};

/// A node says something at least this often, so that a NAT keeps its mapping (RFC 9000, section 10.1.2, has 30 s for the
/// most of them) and the hub knows it is there. Each costs about 130 bytes both ways. Beside a batch a minute one is
/// enough, 5.6 MB a month; a second less, and it would be two.
pub const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// A connection is lost when nothing was heard for this long. A keep-alive that is lost is sent again after some round
/// trips, so that this is far more than two of them.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

/// UDP payload of every packet. Fixed: discovering a larger one costs 28 % more CPU per handshake, and 1200 bytes
/// pass wherever QUIC does (RFC 9000, section 14), through tunnels too.
const MTU: u16 = 1200;
/// Streams a node may have open at once: control, telemetry, shipped logs and live logs. Each costs 80 bytes at rest.
const STREAMS: u32 = 4;
/// What the hub buffers of a connection at most before its reader takes it: one stream's share, and all streams'.
/// 128 KiB a round trip is 1.3 MB/s over 100 ms, ten thousand times what a node sends in its daily life.
const HUB_STREAM_WINDOW: u32 = 128 * 1024;
const HUB_WINDOW: u32 = 256 * 1024;
/// What a node buffers of the hub's messages, which are small.
const NODE_WINDOW: u32 = 128 * 1024;
/// What either side keeps for retransmission; a writer waits when it is full.
const SEND_WINDOW: u64 = 256 * 1024;
/// Handshake bytes that may arrive out of order. A chain of two certificates is about 1.2 KB.
const CRYPTO_BUFFER: usize = 8 * 1024;

/// The hub's side. `idle_timeout` is [`IDLE_TIMEOUT`] but for tests.
pub(crate) fn hub(idle_timeout: Duration) -> Arc<TransportConfig> {
    let mut config = common(idle_timeout);
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS))
        .stream_receive_window(VarInt::from_u32(HUB_STREAM_WINDOW))
        .receive_window(VarInt::from_u32(HUB_WINDOW))
        // A hub sends acknowledgements, one packet each; room for ten at once would cost 12 KB a connection.
        .enable_segmentation_offload(false);
    Arc::new(config)
}

/// A node's side. Only nodes open streams, and only nodes keep alive: ten thousand timers less at the hub.
pub(crate) fn node() -> Arc<TransportConfig> {
    let mut config = common(IDLE_TIMEOUT);
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(NODE_WINDOW))
        .receive_window(VarInt::from_u32(NODE_WINDOW))
        .keep_alive_interval(Some(KEEP_ALIVE));
    Arc::new(config)
}

fn common(idle_timeout: Duration) -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .max_idle_timeout(IdleTimeout::try_from(idle_timeout).ok())
        .send_window(SEND_WINDOW)
        .initial_mtu(MTU)
        .min_mtu(MTU)
        .mtu_discovery_config(None)
        .datagram_receive_buffer_size(None)
        .crypto_buffer_size(CRYPTO_BUFFER);
    config
}
