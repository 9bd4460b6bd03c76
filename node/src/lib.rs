//! What every Hyperfactory node does: identity, enrollment, session, spool, health.
