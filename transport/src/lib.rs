//! QUIC between Hyperfactory nodes and hub.
